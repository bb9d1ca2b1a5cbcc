"""``mhe-classification export``: a trained network as ONNX or safetensors, and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhe_classification.classifier import Classifier, load
from mhe_classification.models import build_model

__all__ = ["ExportConfig", "export", "main"]

TOLERANCE = 1e-4  # largest difference of logits, of the largest logit
BATCHES = (1, 3)  # sizes that the exported network is tried with


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
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.writing")
    write, compute = WRITERS[config.format]
    metadata = describe(classifier)
    try:
        write(classifier, metadata, temporary)
        difference = max(compare(classifier, temporary, compute, size) for size in BATCHES)
        if not difference <= TOLERANCE:
            raise UserError(
                f"expected the exported network to compute what was trained, its logits differ by "
                f"{difference:.2g} of the largest: nothing is written"
            )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
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


@torch.no_grad()
def compare(classifier: Classifier, file: Path, compute: Any, batch_size: int) -> float:
    """The largest difference of logits, relative to the largest logit, on random images."""
    generator = torch.Generator().manual_seed(batch_size)
    size = (batch_size, 3, classifier.image_size, classifier.image_size)
    images = classifier.normalize(torch.randint(256, size, generator=generator))
    expected = classifier.network(images)
    found = compute(classifier, file, images)
    return float((found - expected).abs().max() / expected.abs().max())


def write_onnx(classifier: Classifier, metadata: dict[str, str], file: Path) -> None:
    """The network as one ONNX file, with a free batch size."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  compares the result
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}: pip install 'mhe-classification[onnx]'"
        ) from error

    size = classifier.image_size
    program = torch.onnx.export(
        classifier.network,
        (torch.zeros(2, 3, size, size),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto  # type: ignore[union-attr]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)


def run_onnx(classifier: Classifier, file: Path, images: Tensor) -> Tensor:
    """The logits that onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
    return torch.from_numpy(logits)


def write_safetensors(classifier: Classifier, metadata: dict[str, str], file: Path) -> None:
    """The network's state dict, with the metadata in the header."""
    state = {name: value.contiguous() for name, value in classifier.network.state_dict().items()}
    save_file(state, file, {"format": "pt", **metadata})


def run_safetensors(classifier: Classifier, file: Path, images: Tensor) -> Tensor:
    """The logits of a network that is built anew and gets the file's weights."""
    settings = classifier.settings
    network = build_model(
        settings.model,
        len(classifier.classes),
        classifier.image_size,
        settings.width,
        **settings.network_options(),
    )
    network.load_state_dict(load_file(file))
    return network.eval()(images)


WRITERS: dict[str, tuple[Any, Any]] = {
    "onnx": (write_onnx, run_onnx),
    "safetensors": (write_safetensors, run_safetensors),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ExportConfig, arguments, "mhe-classification export", positional=("run",))
    print(json.dumps(export(config), indent=2))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification export", main, sys.argv[1:]))
