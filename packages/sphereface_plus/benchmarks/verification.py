"""Seconds that a verification takes at LFW's size, once the embeddings are there."""

import time

import numpy as np
from sphereface_plus.verification import PROTOCOLS, roc, ten_fold

PAIRS, DIM, FOLDS, REPEATS = 6000, 1024, 10, 5


def seconds(call) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(PAIRS, DIM)).astype(np.float32) for _ in range(2))
    same, fold = np.arange(PAIRS) % 600 < 300, np.arange(PAIRS) // (PAIRS // FOLDS)
    for protocol in PROTOCOLS:
        taken = seconds(lambda p=protocol: ten_fold(left, right, same, fold, p))
        print(f"ten_fold, {protocol}: {taken:.3f} s for {PAIRS} pairs of {DIM} dimensions")
    scores = ten_fold(left, right, same, fold).scores
    print(f"roc: {seconds(lambda: roc(scores, same)):.3f} s")


if __name__ == "__main__":
    main()
