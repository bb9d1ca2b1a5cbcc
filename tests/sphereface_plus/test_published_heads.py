"""Each head against the program that published it: values and gradients to 1e-9 in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core import hyperspherical_energy
from mhe_core.errors import UserError
from sphereface_plus import create_head, list_heads
from sphereface_plus.heads.combined import combined_logits

VECTORS = Path(__file__).parent / "vectors" / "heads"
FILES = ("heads", "heads_sphereface_family")
SETTINGS = {
    name: settings
    for file in FILES
    for name, settings in json.loads((VECTORS / f"{file}.json").read_text()).items()
}
ARRAYS = {name: array for file in FILES for name, array in np.load(VECTORS / f"{file}.npz").items()}
# The options of a case that a head takes by the same name, and how it calls the others.
RENAMED = {"s": "scale", "r": "scale", "lw": "loss_weight", "magn_type": "version"}


def cases(*families):
    return [name for name in SETTINGS if name.split("/")[0] in families]


def arrays(case):
    return {
        name.removeprefix(f"{case}/"): torch.from_numpy(np.asarray(array))
        for name, array in ARRAYS.items()
        if name.startswith(f"{case}/")
    }


def options_of(case, *left_out):
    return {
        RENAMED.get(key, key): value
        for key, value in SETTINGS[case].items()
        if key not in (*left_out, "call")
    }


def head_of(name, vectors, **options):
    """The head in float64 with the class vectors of the case."""
    weight = vectors["w"] if "w" in vectors else vectors["kernel"].mT
    head = create_head(name, weight.shape[1], weight.shape[0], **options).double()
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def check(head, vectors):
    """Loss and gradients are the recorded ones."""
    x = vectors["x"].clone().requires_grad_()
    loss = head(x, vectors["y"].flatten())
    loss.backward()
    expected = vectors["dw"] if "dw" in vectors else vectors["dkernel"].mT
    close(loss.detach(), vectors["loss"])
    close(x.grad, vectors["dx"])
    close(head.weight.grad, expected)


def close(found, expected):
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "case", cases("opensphere_sphereface", "opensphere_cosface", "opensphere_arcface")
)
def test_openspheres_margins(case):
    vectors = arrays(case)
    check(head_of(case.split("/")[0], vectors, **options_of(case)), vectors)


@pytest.mark.parametrize("case", cases("opensphere_sphereface2", "sphereface2a", "sphereface2m"))
def test_sphereface2_of_each_type(case):
    vectors = arrays(case)
    margin_type = {"a": "A", "m": "M"}.get(case.split("/")[0][-1], "C")
    head = head_of("sphereface2", vectors, margin_type=margin_type, **options_of(case))
    assert head.bias.item() == pytest.approx(vectors["b"].item(), rel=1e-6)  # made in float32
    with torch.no_grad():
        head.bias.copy_(vectors["b"])
    check(head, vectors)
    close(head.bias.grad, vectors["db"])
    assert head.first_bias() == pytest.approx(vectors["b"].item(), rel=1e-6)


@pytest.mark.parametrize("case", cases("spherefacer_h"))
def test_sphereface_r_with_hard_features(case):
    vectors = arrays(case)
    check(head_of("sphereface_r", vectors, **options_of(case)), vectors)


@pytest.mark.parametrize("case", cases("spherefacer_s"))
def test_sphereface_r_with_soft_features_and_a_growing_margin(case):
    vectors, settings = arrays(case), SETTINGS[case]
    head = head_of(
        "sphereface_r",
        vectors,
        **options_of(case, "dm", "steps", "t"),
        features="soft",
        length_weight=settings["t"],
        m=1 + settings["dm"] * len(settings["steps"]),
        milestones=settings["steps"],
    )
    head.iteration += 1
    check(head, vectors)
    assert head.iteration == 2


@pytest.mark.parametrize("case", cases("sphereface_plus"))
def test_sphereface_plus_is_sphereface_and_the_angular_energy_of_the_batchs_classes(case):
    vectors, settings = arrays(case), SETTINGS[case]
    options = options_of(case, "lambda_MHE")
    head = head_of("opensphere_sphereface", vectors, **options)
    x = vectors["x"].clone().requires_grad_()
    loss = head(x, vectors["y"])
    present = head.weight[vectors["y"].unique()]
    energy = hyperspherical_energy(present, s=2, distance="angular")
    (loss + settings["lambda_MHE"] * energy).backward()
    close((loss + settings["lambda_MHE"] * energy).detach(), vectors["loss"])
    close(x.grad, vectors["dx"])
    close(tangential(head), tangential(head, vectors["dkernel"].mT))


def tangential(head, gradient=None):
    """The part of the class vectors' gradient that turns them."""
    w, g = head.weight.detach(), head.weight.grad if gradient is None else gradient
    return g - w * (g * w).sum(1, keepdim=True)


@pytest.mark.parametrize("case", cases("combined"))
@pytest.mark.filterwarnings("ignore:combined")
def test_combined_margins(case):
    vectors = arrays(case)
    options = options_of(case, "t")
    check(head_of("combined", vectors, filter=SETTINGS[case]["t"], **options), vectors)


@pytest.mark.parametrize("case", cases("combined_logits"))
def test_combined_logits_with_classes_elsewhere(case):
    vectors, o = arrays(case), SETTINGS[case]
    if "raises" in o:
        with pytest.raises(UserError, match="m1 = 1"):
            create_head("combined", 4, 3, m1=o["m1"], m2=o["m2"])
        return
    cosines = vectors["cos"].clone().requires_grad_()
    logits = combined_logits(
        o["s"] * cosines, vectors["y"].flatten(), o["m2"], o["m3"], o["t"], o["s"]
    )
    logits.backward(vectors["gout"])
    close(logits.detach(), vectors["out"])
    close(cosines.grad, vectors["dcos"])


@pytest.mark.parametrize("run", ["0", "1", "2"])
def test_adaface_batch_after_batch(run):
    first = arrays(f"adaface/{run}_0")
    head = head_of("adaface", first, **options_of(f"adaface/{run}_0"))
    for k in range(3):
        vectors = arrays(f"adaface/{run}_{k}")
        head.zero_grad()
        with torch.no_grad():
            head.weight.copy_(vectors["kernel"].mT)
        close(head.batch_mean, vectors["mean_before"])
        close(head.batch_std, vectors["std_before"])
        check(head, vectors)
        close(head.batch_mean, vectors["mean_after"])
        close(head.batch_std, vectors["std_after"])
        logits = head.eval().logits(vectors["x"], vectors["y"])
        close(logits.detach(), vectors["logits"])
        head.train()


@pytest.mark.parametrize("case", cases("magface"))
def test_magface(case):
    vectors = arrays(case)
    check(head_of("magface", vectors, **{**options_of(case)}), vectors)


@pytest.mark.parametrize("run", ["0", "1"])
def test_curricularface_batch_after_batch(run):
    head = head_of(
        "curricularface",
        arrays(f"curricularface/{run}_0"),
        **options_of(f"curricularface/{run}_0"),
    )
    for k in range(3):
        vectors = arrays(f"curricularface/{run}_{k}")
        head.zero_grad()
        with torch.no_grad():
            head.weight.copy_(vectors["kernel"].mT)
        close(head.t, vectors["t_before"])
        check(head, vectors)
        close(head.t, vectors["t_after"])
        logits = head.eval().logits(vectors["x"], vectors["y"])
        close(logits.detach(), vectors["logits"])
        head.train()


@pytest.mark.parametrize("name", list_heads())
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_zero_feature_keeps_gradients_small(name, scale):
    torch.manual_seed(0)
    head = create_head(name, 6, 5)
    x = scale * torch.randn(4, 6)
    x[2] = 0
    x[3] = scale * head.weight.detach()[1]
    x.requires_grad_()
    loss = head(x, torch.tensor([0, 1, 2, 1]))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e4
    assert x.grad[:2].norm(dim=1).min() > 0
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", list_heads())
def test_half_precision_features_give_a_float32_loss_under_autocast(name):
    torch.manual_seed(0)
    head, labels = create_head(name, 16, 5), torch.tensor([0, 4])
    x = (10 * torch.randn(2, 16)).bfloat16()
    state = {key: value.clone() for key, value in head.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(x, labels)
    head.load_state_dict(state)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head(x.float(), labels))


@pytest.mark.parametrize("name", list_heads())
def test_state_stays_in_evaluation_and_two_batches_share_a_backward(name):
    torch.manual_seed(0)
    head, labels = create_head(name, 8, 5).eval(), torch.tensor([0, 4, 1])
    x = torch.randn(3, 8)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head(x, labels)
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())
    head.train()
    (head(x, labels) + head(2 * x, labels)).backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adafce", {}, "did you mean .adaface"),
        ("adaface", {"t_alpha": 2}, "t_alpha of the head adaface"),
        ("adaface", {"margin": 1}, "margin"),
        ("magface", {"l_a": 50, "u_a": 40}, "l_a < u_a"),
        ("combined", {"m1": 1.2}, "m1 = 1"),
        ("curricularface", {"m": float("nan")}, "m of the head"),
        ("sphereface2", {"margin_type": "X"}, "margin_type"),
        ("sphereface_r", {"version": "v3"}, "version"),
        ("sphereface_r", {"m": 0.5}, "m of the head"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        create_head(name, 4, 3, **options)
