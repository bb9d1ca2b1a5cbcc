"""The command ``mhe-uniformity``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mhe-uniformity bench``; what the user got wrong is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="mhe-uniformity", description="Published regularizers that spread directions."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "time and memory of each regularizer, against the two dense products"
    command = commands.add_parser("bench", help=text, description=f"Measure {text}.")
    command.add_argument("--regularizers", help="which, with commas between; default: all of ours")
    command.add_argument("--sizes", help="N×d of the neurons, such as 64x576,50000x512")
    command.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    command.add_argument("--most-seconds", type=float, default=60.0, help="of a step; default: 60")
    command.add_argument("--output", type=Path, default=Path("runs/uniformity_bench"))
    arguments = parser.parse_args(argv)
    try:
        run_bench(arguments)
    except ModuleNotFoundError as error:
        parser.exit(2, f"mhe-uniformity: error: {error}; pip install mhe-uniformity[bench]\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"mhe-uniformity: error: {error}\n")


def run_bench(arguments: argparse.Namespace) -> None:
    """Measure, and print the table."""
    from mhe_core import create_regularizer

    from mhe_uniformity import bench  # needs an extra

    if arguments.most_seconds <= 0:
        raise ValueError(f"expected --most-seconds above 0, got {arguments.most_seconds}")
    if arguments.regularizers is None:
        names = bench.distribution_names()
    else:
        names = [name.strip() for name in arguments.regularizers.split(",")]
        for name in names:
            create_regularizer(name, 4, 4)  # unknown names are told before anything is measured
    sizes: Sequence[tuple[int, int]] = bench.QUICK_SIZES if arguments.quick else bench.SIZES
    if arguments.sizes is not None:
        sizes = list(map(size, arguments.sizes.split(",")))
    table = bench.bench(names, sizes, arguments.output, arguments.most_seconds)
    print(f"\n{table}\nPicture: {arguments.output / 'costs.png'}")


def size(text: str) -> tuple[int, int]:
    """``"64x576"`` as 64 neurons in 576 dimensions."""
    found = re.fullmatch(r"\s*([1-9]\d*)[x×]([1-9]\d*)\s*", text)
    if found is None:
        raise ValueError(f"expected --sizes such as 64x576,256x2304, got {text!r}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    main()
