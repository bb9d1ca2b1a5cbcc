"""What orthogonal fine-tuning (OFT, BOFT) does to the energy of a layer: a table. Needs peft.

OFT multiplies a layer's weight by orthogonal blocks, so that the neurons turn together and their
hyperspherical energy stays (Qiu et al. 2023, arXiv:2306.07280). PEFT's default computes the
blocks by a truncated series, which is orthogonal only for small parameters.
"""

from __future__ import annotations

import argparse
import copy

import peft
import torch
from mhe_core.diagnostics import difference
from torch import nn

KINDS = {
    "OFT, Cayley-Neumann (default)": lambda: peft.OFTConfig(
        target_modules=["0"], oft_block_size=32
    ),
    "OFT, exact Cayley": lambda: peft.OFTConfig(
        target_modules=["0"], oft_block_size=32, use_cayley_neumann=False
    ),
    "BOFT": lambda: peft.BOFTConfig(target_modules=["0"], boft_block_size=32),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2])
    arguments = parser.parse_args()
    print("| adapter | parameter scale | change of energy | cosines, RMS | rotation defect |")
    print("|---|---|---|---|---|")
    for name, config in KINDS.items():
        for scale in arguments.scales:
            torch.manual_seed(0)
            base = nn.Sequential(nn.Linear(128, 256, bias=False)).double()
            model = peft.get_peft_model(copy.deepcopy(base), config()).double()
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "oft_R" in key:
                        parameter.normal_(0, scale)
            (layer,) = difference(base, model, s=1)
            print(
                f"| {name} | {scale} | {layer.relative_change:+.1e} | {layer.cosine_rms:.1e} "
                f"| {layer.rotation_defect:.1e} |"
            )


if __name__ == "__main__":
    main()
