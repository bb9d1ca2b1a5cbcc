"""How fast a pack is read, over Pillow's own decoding of the same JPEGs from memory.

    python packages/sphereface_plus/benchmarks/packs.py [PACK] [--images 4000] [--rounds 5]

Without a pack, one of 112 x 112 JPEGs (quality 95, smoothed noise) is written into a temporary
folder. Both are timed in each round, in random order of the images, one process and one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sphereface_plus.packs import RecordPack
from sphereface_plus.packs.recordio import MAGIC

SIDE = 112


def write_pack(folder: Path, images: int) -> None:
    """A pack without a header, whose images look nothing like faces but are as large."""
    rng = np.random.default_rng(0)
    lines = []
    with (folder / "train.rec").open("wb") as file:
        for key in range(images):
            noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            jpeg = io.BytesIO()
            noise.filter(ImageFilter.GaussianBlur(2)).save(jpeg, "JPEG", quality=95)
            record = struct.pack("<IfQQ", 0, float(key % 100), key, 0) + jpeg.getvalue()
            lines.append(f"{key}\t{file.tell()}\n")
            file.write(struct.pack("<II", MAGIC, len(record)) + record + bytes(-len(record) % 4))
    (folder / "train.idx").write_text("".join(lines))


def seconds(call: Callable[[int], object], order: Iterable[int]) -> float:
    began = time.perf_counter()
    for i in order:
        call(i)
    return time.perf_counter() - began


def measure(pack: RecordPack, rounds: int, most: int) -> None:
    order = np.random.default_rng(1).permutation(len(pack))[:most].tolist()
    encoded = {i: pack.encoded(i) for i in order}

    def pillow(i: int) -> object:
        return np.asarray(Image.open(io.BytesIO(encoded[i])).convert("RGB"))

    ours, theirs = [], []
    for counts in range(-1, rounds):  # the first one warms up
        pair = seconds(pack.image, order), seconds(pillow, order)
        if counts >= 0:
            ours.append(pair[0])
            theirs.append(pair[1])
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    size = statistics.mean(map(len, encoded.values())) / 1024
    print(f"{len(order)} images of {size:.1f} KiB on average, median of {rounds} rounds")
    print(f"RecordPack.image: {len(order) / statistics.median(ours):.0f} images/s")
    print(f"Pillow alone: {len(order) / statistics.median(theirs):.0f} images/s")
    print(f"the pack is read {ratio:.2f} times as fast as Pillow alone decodes it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", nargs="?", help="train.rec, or its folder")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.pack is not None:
        measure(RecordPack(args.pack), args.rounds, args.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_pack(Path(folder), args.images)
        measure(RecordPack(folder), args.rounds, args.images)


if __name__ == "__main__":
    main()
