import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def orl() -> Path:
    """The ORL faces in LFW's layout: train/, test/ and pairs.txt."""
    folder = Path(os.environ.get("MHE_TEST_DATA", "")) / "orl-faces"
    if "MHE_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("MHE_TEST_DATA names no folder with orl-faces")
    return folder
