"""``sphereface-plus export``: a trained backbone as ONNX, safetensors or TorchScript."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mhe_core.training.command import parse, run_command
from mhe_core.training.export import export_network

from sphereface_plus.embedding import load_run

__all__ = ["ExportConfig", "export", "main"]

SUFFIX = {"onnx": ".onnx", "safetensors": ".safetensors", "torchscript": ".pt"}


@dataclass(kw_only=True)
class ExportConfig:
    """Export a run's backbone, and compare what the file computes with what was trained.

    Its input is aligned faces as RGB, float32 [B, 3, h, w] with any B, (x − 127.5) / 128 of pixels
    from 0 to 255; its output is embeddings [B, d], not normalised.

    Attributes:
        run: a run directory of train.
        format: onnx (for which pip install onnx onnxruntime onnxscript), safetensors, torchscript.
        output: the file; default: model.onnx, …, in the run directory.
        checkpoint: of the run, best or last.
    """

    run: Path
    format: Literal["onnx", "safetensors", "torchscript"] = "onnx"
    output: Path | None = None
    checkpoint: str = "best"


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the backbone to ``config.output``.

    Returns:
        ``file`` and ``largest_difference``: of embeddings of random images, relative to the
        largest, from those of the trained network, at batch sizes 1 and 3.

    Raises:
        RunError: if ``run`` is not a run directory.
        UserError: if the embeddings differ by more than 1e-4, and nothing is written; or a package
            that ONNX needs is not installed.
    """
    model, settings, facts = load_run(config.run, config.checkpoint)
    height, width = facts["image_size"]
    file = config.output or Path(config.run) / f"model{SUFFIX[config.format]}"
    metadata = {
        "model": settings.model,
        "dim": str(settings.dim),
        "image_size": f"{height}x{width}",
        "input": "RGB, (x - 127.5) / 128 of pixels from 0 to 255, aligned",
    }
    difference = export_network(
        model.backbone, (height, width), file, config.format, output="embedding", metadata=metadata
    )
    return {"file": str(file), "largest_difference": difference, **metadata}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    found = export(parse(ExportConfig, arguments, "sphereface-plus export", ("run",)))
    print(f"{found['file']}: differs by {found['largest_difference']:.1e} from the trained network")


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus export", main, sys.argv[1:]))
