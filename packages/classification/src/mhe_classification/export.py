"""``mhe-classification export``: a trained network as ONNX or safetensors, and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mhe_core.training.command import parse, run_command
from mhe_core.training.export import export_network

from mhe_classification.classifier import Classifier, load

__all__ = ["ExportConfig", "export", "main"]


@dataclass(kw_only=True)
class ExportConfig:
    """Export a trained network, and compare what it computes with what was trained.

    Its input is normalized images, float32 [B, 3, h, w], B being free: (x − mean) / std of RGB
    pixels from 0 to 255, with the constants that its metadata has, beside the classes' names.

    Attributes:
        run: the run directory.
        format: onnx, for which mhe-classification[onnx] is needed, or safetensors.
        output: the file; default: model.onnx or model.safetensors in the run directory.
        checkpoint: best, last, or another file in its checkpoints.
    """

    run: Path
    format: Literal["onnx", "safetensors"] = "onnx"
    output: Path | None = None
    checkpoint: str = "best"


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the network to ``config.output``.

    Returns:
        ``file``, its ``format`` and ``metadata``, and ``largest_difference``: of the logits of
        random images, from those of the network that was trained.

    Raises:
        RunError: if ``run`` is not a run directory.
        UserError: if onnx, onnxscript or onnxruntime are not installed, or the logits differ by
            more than 1e-4 of the largest; then nothing is written.
    """
    classifier = load(config.run, config.checkpoint)
    file = config.output or Path(config.run) / f"model.{config.format}"
    metadata = describe(classifier)
    size = (classifier.image_size, classifier.image_size)
    difference = export_network(
        classifier.network, size, file, config.format, output="logits", metadata=metadata
    )
    return {
        "file": str(file),
        "format": config.format,
        "metadata": metadata,
        "largest_difference": difference,
    }


def describe(classifier: Classifier) -> dict[str, str]:
    """What one must know to use the network, as text: JSON where it is a list."""
    constants = classifier.normalize.constants()
    return {
        "model": classifier.settings.model,
        "classes": json.dumps(list(classifier.classes)),
        "image_size": str(classifier.image_size),
        **{name: json.dumps(values) for name, values in constants.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ExportConfig, arguments, "mhe-classification export", positional=("run",))
    print(json.dumps(export(config), indent=2))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification export", main, sys.argv[1:]))
