"""A trained network in a format that other programs read, and proof that it computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.errors import UserError

__all__ = ["FORMATS", "export_network"]

TOLERANCE = 1e-4  # largest difference of outputs, of the largest output
BATCHES = (1, 3)  # sizes that the exported network is tried with
FIRST_DYNAMO_EXPORT = (2, 8)  # of torch: before, its new exporter to ONNX fails on small networks

Computes = Callable[[Tensor], Tensor]


def export_network(
    network: nn.Module,
    image_size: tuple[int, int],
    file: Path,
    format: str,
    *,
    output: str = "output",
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a network of images, float32 [B, 3, h, w] with any B, and compare what it computes.

    Args:
        network: in evaluation mode, on the CPU.
        image_size: height and width of its images.
        file: where to; only written if the comparison holds.
        format: ``onnx`` (which needs onnx, onnxscript and onnxruntime), ``safetensors`` (the state
            dict) or ``torchscript``.
        output: the output's name, in ONNX.
        metadata: what a user must know, as text; in ONNX and safetensors.

    Returns:
        The largest difference of outputs of random images, relative to the largest output.

    Raises:
        UserError: for another format, if a package that the format needs is not installed, or if
            the outputs differ by more than 1e-4 of the largest.
    """
    if format not in FORMATS:
        raise UserError(f"expected format to be one of {tuple(FORMATS)}, got {format!r}")
    write, load = FORMATS[format]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.writing")
    try:
        write(network, torch.zeros(2, 3, *image_size), temporary, output, dict(metadata or {}))
        compute = load(network, temporary)
        difference = max(_difference(network, compute, image_size, batch) for batch in BATCHES)
        if not difference <= TOLERANCE:
            raise UserError(
                "expected the exported network to compute what was trained, its outputs differ by "
                f"{difference:.2g} of the largest: nothing is written"
            )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


@torch.no_grad()
def _difference(network: nn.Module, compute: Computes, size: tuple[int, int], batch: int) -> float:
    generator = torch.Generator().manual_seed(batch)
    images = 2 * torch.rand(batch, 3, *size, generator=generator) - 1
    expected = network(images)
    return float((compute(images) - expected).abs().max() / expected.abs().max())


def _write_onnx(
    network: nn.Module, example: Tensor, file: Path, output: str, metadata: dict[str, str]
) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401  compares the result
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"the format onnx needs {error.name}: pip install onnx onnxruntime onnxscript"
        ) from error
    names: dict[str, Any] = {"input_names": ["images"], "output_names": [output]}
    if tuple(map(int, torch.__version__.split(".")[:2])) < FIRST_DYNAMO_EXPORT:
        free = {name: {0: "batch"} for name in ("images", output)}
        torch.onnx.export(network, (example,), str(file), dynamic_axes=free, dynamo=False, **names)
        model = onnx.load(file)
    else:
        free_batch = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(
            network, (example,), dynamic_shapes=free_batch, dynamo=True, verbose=False, **names
        )
        model = program.model_proto  # type: ignore[union-attr]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)


def _load_onnx(network: nn.Module, file: Path) -> Computes:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> Tensor:
        (found,) = session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(found)

    return compute


def _write_safetensors(
    network: nn.Module, example: Tensor, file: Path, output: str, metadata: dict[str, str]
) -> None:
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, file, {"format": "pt", **metadata})


def _load_safetensors(network: nn.Module, file: Path) -> Computes:
    from safetensors.torch import load_file

    empty = copy.deepcopy(network)
    for value in empty.state_dict().values():
        value.zero_()
    empty.load_state_dict(load_file(file))
    return empty


def _write_torchscript(
    network: nn.Module, example: Tensor, file: Path, output: str, metadata: dict[str, str]
) -> None:
    torch.jit.save(torch.jit.trace(network, example), str(file))


def _load_torchscript(network: nn.Module, file: Path) -> Computes:
    loaded: Computes = torch.jit.load(str(file), map_location="cpu")
    return loaded


FORMATS: dict[str, tuple[Any, Callable[[nn.Module, Path], Computes]]] = {
    "onnx": (_write_onnx, _load_onnx),
    "safetensors": (_write_safetensors, _load_safetensors),
    "torchscript": (_write_torchscript, _load_torchscript),
}
