"""``sphereface-plus verify``: are two photographs one person?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhe_core.training.command import parse, run_command

from sphereface_plus.verifier import Comparison, FaceVerifier

__all__ = ["VerifyConfig", "main", "verify_photographs"]


@dataclass(kw_only=True)
class VerifyConfig:
    """Score two photographs, and say whether they are one person at a false positive rate.

    Attributes:
        run: a run directory of train.
        first: a photograph.
        second: another one.
        fpr: false positive rate, of those for which test has measured a threshold.
        report: test's report.json, in place of RUN/test/report.json.
        align: find and align the faces; --no-align for photographs that are aligned.
        checkpoint: of the run, best or last.
    """

    run: Path
    first: Path
    second: Path
    fpr: float = 1e-3
    report: Path | None = None
    align: bool = True
    checkpoint: str = "best"


def verify_photographs(config: VerifyConfig) -> Comparison:
    """The score, and what follows from it."""
    verifier = FaceVerifier.load(config.run, config.checkpoint, config.report, config.align)
    return verifier.compare(config.first, config.second, config.fpr)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(VerifyConfig, arguments, "sphereface-plus verify", ("run", "first", "second"))
    found = verify_photographs(config)
    if found.same is None:
        print(f"score {found.score:.4f}; no threshold: run sphereface-plus test {config.run} first")
        return
    verdict = "same person" if found.same else "different persons"
    print(
        f"score {found.score:.4f}: {verdict} at a false positive rate of {found.fpr:g} "
        f"(threshold {found.threshold:.4f})"
    )


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus verify", main, sys.argv[1:]))
