"""Print, for each published program, how far ours is from its outputs.

python packages/uniformity/benchmarks/differences.py
"""

import runpy
from pathlib import Path

import numpy as np
import torch
from mhe_core import create_regularizer

TESTS = Path(__file__).parents[3] / "tests" / "uniformity"
PROGRAMS = runpy.run_path(str(TESTS / "conftest.py"))  # the settings that the tests hold


def largest_difference(found, wanted):
    """Relative to the largest entry; absolute where that is rounding."""
    difference, scale = (found - wanted).abs().max().item(), wanted.abs().max().item()
    return difference / scale if scale > 1e-9 else difference


def main():
    with np.load(TESTS / "vectors.npz") as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    print("| program | setting | value | gradient |\n|---|---|---|---|")
    for program, (name, options) in PROGRAMS["SETTINGS"].items():
        worst = [0.0, 0.0]
        for shape in PROGRAMS["SHAPES"]:
            neurons = stored[f"{shape}/neurons"].requires_grad_()
            regularizer = create_regularizer(name, *neurons.shape, **options).double()
            for buffer in ("poles", "start"):
                if f"{program}|{shape}/{buffer}" in stored:
                    getattr(regularizer, buffer).copy_(stored[f"{program}|{shape}/{buffer}"])
            ties = stored.get(f"{program}|{shape}/ties", 1)
            value = regularizer(neurons)
            (gradient,) = torch.autograd.grad(value, neurons)
            for k, (found, key) in enumerate([(value.detach(), "loss"), (gradient, "grad")]):
                wanted = stored[f"{program}|{shape}/{key}"] / ties
                worst[k] = max(worst[k], largest_difference(found, wanted))
        setting = ", ".join([repr(name), *(f"{k}={v!r}" for k, v in options.items())])
        print(f"| {program.replace('|', ', ')} | `{setting}` | {worst[0]:.1e} | {worst[1]:.1e} |")


if __name__ == "__main__":
    main()
