"""Core's own regularizers are the same by any of their names; a third party's is never theirs."""

import pytest
import torch
from mhe_core import register_regularizer, registry
from mhe_core.training.naming import own_name


@pytest.mark.parametrize("name", ["mhe", "half_mhe", "comhe_random"])
def test_a_name_and_its_long_form_are_one(name):
    assert own_name(name) == own_name(f"mhe-core:{name}") == own_name(f"mhe_core:{name}") == name


@pytest.mark.parametrize("name", ["elsewhere:mhe", "comhe_anything", "none", ""])
def test_others_are_not_ours(name):
    assert own_name(name) is None


def test_a_name_that_another_claims_as_well_is_ours_in_its_long_form_only(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register_regularizer("mhe", torch.nn.Identity)
    assert own_name("mhe") is own_name("in-process:mhe") is None
    assert own_name("mhe-core:mhe") == "mhe"
