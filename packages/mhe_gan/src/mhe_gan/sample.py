"""``mhe-gan sample``: pictures from a trained generator."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mhe_core.errors import UserError
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import replacing
from mhe_core.training.loop import restore_state
from mhe_core.training.processes import resolve_device
from mhe_core.training.run import saved_config
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.utils import make_grid

from mhe_gan.config import GANConfig
from mhe_gan.data import to_pixels
from mhe_gan.networks import NOISE_DIM, create_networks

__all__ = [
    "SampleConfig",
    "calibrate",
    "class_names",
    "classes_as_trained",
    "draw_noise",
    "generate",
    "grid_columns",
    "interpolated_noise",
    "load_generator",
    "main",
    "sample",
    "save_grid",
    "scored_samples",
]

# The files of grids, by suffix, and how Pillow writes them: without loss, but for JPEG.
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
FORMATS: dict[str, dict[str, Any]] = {
    ".bmp": {"format": "BMP"},
    ".jpeg": JPEG,
    ".jpg": JPEG,
    ".png": {"format": "PNG"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".webp": {"format": "WEBP", "lossless": True},
}
WIDEST = 20  # images, a grid with a column for each class


@dataclass(kw_only=True)
class SampleConfig:
    """Sample a trained generator.

    Attributes:
        run: the run directory.
        output: a file for a grid, that ends with .png, .bmp, .tif or .webp, which lose nothing, or
            with .jpg; or a new folder for single images, as PNG.
        num: how many images.
        seed: of the noise.
        interpolate: images a row from one noise to another; 0: every image has its own noise.
        class_: the class of all images, by its name or number, of a run with --conditional;
            default: each class in turn, one a column of the grid, or, with --interpolate, a row.
        checkpoint: last, best, or another file in the run's checkpoints.
        average: use the moving average of the generator's weights, if the run has one.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, ….
    """

    run: Path
    output: Path
    num: int = 64
    seed: int = 0
    interpolate: int = 0
    class_: str | None = None
    checkpoint: str = "last"
    average: bool = True
    batch_size: int = 500
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise a ValueError for a setting out of range."""
        if self.num < 1 or self.batch_size < 1:
            raise UserError(
                f"expected --num and --batch-size above 0, got {self.num} and {self.batch_size}"
            )
        if self.interpolate == 1 or self.interpolate < 0:
            raise UserError(f"expected --interpolate 0 or at least 2, got {self.interpolate}")


def load_generator(
    run: Path, checkpoint: str = "last", average: bool = True
) -> tuple[nn.Module, GANConfig, int]:
    """A trained generator in evaluation mode, its run's settings, and the steps it was trained.

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if the checkpoint is damaged or does not fit.
    """
    config = saved_config(GANConfig, run)
    file = Path(run) / "checkpoints" / checkpoint
    content = load_checkpoint(file)
    generator, _ = create_networks(
        config.model,
        width=config.width,
        image_size=content["facts"]["image_size"],
        channels=config.channels,
        classes=content["facts"].get("classes", ()),
        class_counts=content["facts"].get("class_counts", ()),  # there was a time without
    )
    name = "average" if average and config.ema else "generator"
    restore_state({name: generator}, content["state"], str(file))
    generator = calibrate(generator) if name == "average" else generator.eval()
    return generator, config, content["step"]


def calibrate(average: nn.Module) -> nn.Module:
    """Set the batch norms' statistics to those of the averaged weights; returns the generator.

    Averaged weights give other activations than the weights they were averaged from, so that the
    running statistics of training do not fit them. Estimated from a fixed noise, of classes as
    frequent as in training.
    """
    device = next(average.parameters()).device
    noise, classes = draw_noise(2048, seed=0), classes_as_trained(average, 2048)
    inputs = [x.to(device) for x in (noise, classes) if x is not None]
    update_bn(torch.arange(2048, device=device).split(64), _Drawn(average, inputs))
    return average.eval()


class _Drawn(nn.Module):
    """A network as a function of the rows of its inputs, as ``update_bn`` gives it one tensor."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, rows: Tensor) -> Tensor:
        """What the network makes of those rows."""
        return self.network(*(x[rows] for x in self.inputs))


def classes_in_turn(generator: nn.Module, num: int, each: int = 1) -> tuple[Tensor, ...]:
    """The classes of ``num`` images, ``each`` of one and then of the next; () where there are none.

    Returns:
        What a generator takes beside the noise: int64 [num] if it is conditional, else nothing.
    """
    count = len(class_names(generator))
    return (torch.arange(num) // each % count,) if count else ()


def classes_as_trained(generator: nn.Module, num: int) -> Tensor | None:
    """The classes of ``num`` images, as frequent as in training; None without conditioning.

    Those of a generator whose training images were not counted are equally frequent.

    Returns:
        int64 [num], always the same for a generator.
    """
    count = len(class_names(generator))
    if not count:
        return None
    return apportioned(getattr(generator, "class_counts", ()) or (1,) * count, num)


def apportioned(counts: Sequence[int], num: int) -> Tensor:
    """So many classes in the proportion of the counts, each evenly spread.

    How many a class gets is rounded by the largest remainders, and the j-th of n is put at
    (j + ½)/n of the way.

    Returns:
        int64 [num], in [0, number of classes).

    Example:
        >>> apportioned([30, 10], 8), apportioned([1, 1, 1], 5)
        (tensor([0, 0, 1, 0, 0, 0, 1, 0]), tensor([0, 1, 2, 0, 1]))
    """
    exact = torch.tensor(counts, dtype=torch.float64) * num / sum(counts)
    whole = exact.long()
    most = (whole - exact).argsort(stable=True)[: num - int(whole.sum())]
    whole[most] += 1
    places = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in whole.tolist()]
    classes = torch.arange(len(whole)).repeat_interleave(whole)
    return classes[torch.cat(places).argsort(stable=True)]


def class_names(generator: nn.Module) -> tuple[str, ...]:
    """The names of the classes that a generator is conditional on, by :func:`create_networks`."""
    return getattr(generator, "classes", ())


def draw_noise(num: int, seed: int) -> Tensor:
    """Normal noise [num, 128] that depends on the seed alone, not on device or batch size."""
    return torch.randn(num, NOISE_DIM, generator=torch.Generator().manual_seed(seed))


def interpolated_noise(num: int, per_row: int, seed: int) -> Tensor:
    """Noise [num, 128] whose rows of ``per_row`` go from one noise to another.

    Along the great circle, with the length changing evenly: the straight line between two normal
    vectors passes through lengths that normal vectors of many dimensions never have.
    """
    rows = -(-num // per_row)
    start, end = draw_noise(2 * rows, seed).view(2, rows, 1, NOISE_DIM)
    t = torch.linspace(0, 1, per_row).view(1, per_row, 1)
    lengths = [x.norm(dim=-1, keepdim=True) for x in (start, end)]
    u, v = start / lengths[0], end / lengths[1]
    angle = torch.acos((u * v).sum(-1, keepdim=True))
    direction = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return (direction * lengths[0].lerp(lengths[1], t)).flatten(0, 1)[:num]


@torch.no_grad()
def generate(
    generator: nn.Module, noise: Tensor, batch_size: int = 500, classes: Tensor | None = None
) -> Iterator[Tensor]:
    """Images for the noise [N, 128], as batches of uint8 [B, 3, h, w] on the generator's device.

    Args:
        generator: in evaluation mode.
        noise: normal, [N, 128].
        batch_size: images at a time.
        classes: of a conditional generator's images, int64 [N]; default: each in turn.
    """
    device = next(generator.parameters()).device
    chosen = classes_in_turn(generator, len(noise)) if classes is None else (classes,)
    for parts in zip(*(x.split(batch_size) for x in (noise, *chosen)), strict=True):
        pixels = to_pixels(generator(*(part.to(device) for part in parts)))
        yield pixels.expand(-1, 3, -1, -1)  # of grey images, too


def scored_samples(
    generator: nn.Module, num: int, seed: int, batch_size: int = 500
) -> Iterator[Tensor]:
    """The images that scores are of, as :func:`generate` makes them.

    The noise is the seed's, and classes are as frequent as in training.
    """
    classes = classes_as_trained(generator, num)
    yield from generate(generator, draw_noise(num, seed), batch_size, classes)


def save_grid(pixels: Tensor, file: Path, columns: int = 8) -> None:
    """Write uint8 images [N, 3, h, w] as one, ``columns`` a row; replaces the file atomically."""
    save_image(make_grid(pixels.cpu(), nrow=columns, padding=2, pad_value=255), file)


def save_image(pixels: Tensor, file: Path) -> None:
    """Write one uint8 image [3, h, w], as its suffix says, then rename it to its name."""
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    with replacing(file, "wb") as stream:
        image.save(stream, **FORMATS[file.suffix.lower()])


def is_grid(output: Path) -> bool:
    """Whether samples are to be written as a grid, and not as single images.

    Raises:
        UserError: if neither can be written there, or images would be mixed with others.
    """
    suffix = output.suffix.lower()
    if suffix in FORMATS:
        if output.is_dir():
            raise UserError(f"expected a file for a grid, {output} is a folder")
        return True
    if suffix in Image.registered_extensions():
        raise UserError(
            f"expected --output that ends with {', '.join(FORMATS)}, or a folder for single "
            f"images, got {output}"
        )
    if output.exists() and not output.is_dir():
        raise UserError(
            f"expected a folder for single images, or a file that ends with {', '.join(FORMATS)}, "
            f"{output} is a file"
        )
    if output.is_dir() and (found := len(list(output.iterdir()))):
        raise UserError(
            f"expected a new or an empty folder for single images, {output} holds {found} files"
        )
    return False


def grid_columns(generator: nn.Module, num: int) -> int:
    """A column for each class, where they fit into a row, else as many columns as rows."""
    classes = len(class_names(generator))
    return classes if 1 < classes <= min(num, WIDEST) else round(num**0.5)


def find_class(generator: nn.Module, name: str) -> int:
    """The number of the class of that name or number.

    Raises:
        UserError: if there is none, or the generator is not conditional.
    """
    names = class_names(generator)
    if not names:
        raise UserError("expected --class of a run with --conditional, this one has no classes")
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise UserError(f"expected --class of {shown}, or a number below {len(names)}, got {name!r}")


def sample(config: SampleConfig) -> None:
    """Write a grid, or single images ``000000.png``, ….

    Raises:
        UserError: if it cannot be written there, or the run has no such class.
    """
    as_grid = is_grid(config.output)
    generator, _, _ = load_generator(config.run, config.checkpoint, config.average)
    generator.to(resolve_device(config.device))
    columns = grid_columns(generator, config.num)
    classes: Tensor | None = None
    if config.class_ is not None:
        classes = torch.full((config.num,), find_class(generator, config.class_))
        columns = round(config.num**0.5)
    if config.interpolate:
        columns = config.interpolate
        noise = interpolated_noise(config.num, config.interpolate, config.seed)
        if classes is None:
            (classes,) = classes_in_turn(generator, config.num, config.interpolate) or (None,)
    else:
        noise = draw_noise(config.num, config.seed)
    batches = generate(generator, noise, config.batch_size, classes)
    if as_grid:
        save_grid(torch.cat([batch.cpu() for batch in batches]), config.output, columns)
        return
    images = (image for batch in batches for image in batch)
    for number, image in enumerate(images):
        save_image(image, config.output / f"{number:06d}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(SampleConfig, arguments, "mhe-gan sample", positional=("run",))
    sample(config)
    print(config.output)


if __name__ == "__main__":
    sys.exit(run_command("mhe-gan sample", main, sys.argv[1:]))
