"""What makes a comparison of two sets of images unfair, seen in the images themselves.

Scores compare what a network sees: a resize or a compression of one side moves them more than the
generator does. Parmar et al., *On Aliased Resizing and Surprising Subtleties in GAN Evaluation*
(CVPR 2022, arXiv:2104.11222).

Not seen are JPEG of quality above about 92 that was re-saved, or cropped other than at multiples of
8 pixels since, or where each image of a set had another quality; WebP and other formats with
losses where the files are of another format now; and reduction by the nearest pixel, unless the
images come out sharper than the other side's by a fifth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mhe_gan.lattice import FREQUENCIES, STEPS, lattice_sums, nearness

__all__ = ["LOSSY", "Appearance", "unlike"]

LOSSY = ("JPEG", "WebP", "AVIF", "JPEG 2000")  # formats that lose, WebP and JPEG 2000 as a rule

# Ratios of the two sides' figures beyond which they are pointed out: parts of 100 photographs of
# one set differ by up to 1.03 and 1.06, JPEG of quality 75 makes 1.15, resizing by 3/4 1.4.
BLOCKS = 1.08
SHARPNESS = 1.2
# JPEG of quality 50 to 90 is 0.6 to 1 near to its steps, photographs that were not or that were
# resized since up to 0.05, drawings in black and white up to 0.2.
QUANTISED = 0.4
# Rows and columns that repeat the one before them: of photographs none, enlarged by the nearest
# pixel 1/9 or more from 36/32 on.
REPEATED = 0.08
BUSY = 0.2  # share of a column's steps that are none, above which its repetition is no chance
LOOKED_AT = 1000  # images
CORNER = 512  # pixels of each side that are looked at
BLOCKS_CORNER = 64  # and whose cosine transform is


@dataclass
class Appearance:
    """Sizes, sharpness and traces of compression of images that pass by.

    Attributes:
        sizes: how many images have each height and width.
        formats: how many files are of each of the formats LOSSY, and how many other.
        grey: how many images have no colour.
    """

    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    grey: int = 0
    _sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    _repeats: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    _lattice: Tensor = field(
        default_factory=lambda: torch.zeros(2, len(FREQUENCIES), len(STEPS), dtype=torch.float64)
    )
    _looked_at: int = 0

    def watch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Hand the batches on, and look at them."""
        for images in batches:
            self.sizes[tuple(images.shape[-2:])] += len(images)  # type: ignore[index]
            self.grey += int((images == images[:, :1]).flatten(1).all(1).sum())
            if self._looked_at < LOOKED_AT and min(images.shape[-2:]) >= 16:
                self._look(images[..., :CORNER, :CORNER].cpu())
            yield images

    def _look(self, images: Tensor) -> None:
        self._looked_at += len(images)
        self._lattice += lattice_sums(images[..., :BLOCKS_CORNER, :BLOCKS_CORNER])
        x = images.float()
        for rows in (x, x.mT):  # differences of columns, then of rows
            steps = rows.diff(dim=-1).abs().mean((0, 1, 2), dtype=torch.float64)
            border = torch.arange(len(steps)) % 8 == 7  # JPEG's blocks of 8
            far = (rows[..., 4:] - rows[..., :-4]).abs().mean(dtype=torch.float64)
            busy = (rows[:, :, 1:] != rows[:, :, :-1]).any(1).float().mean(1) > BUSY
            same = (rows[..., 1:] == rows[..., :-1]).all(2).all(1)
            self._repeats += torch.stack([(same & busy[:, 1:]).sum(), busy[:, 1:].sum()])
            self._sums += torch.stack(
                [steps[border].mean(), steps[~border].mean(), steps.mean(), far]
            )

    def plain(self) -> dict[str, Any]:
        """What JSON can hold, for :meth:`of_plain`."""
        return {
            "formats": dict(self.formats),
            "sizes": [[*size, count] for size, count in self.sizes.items()],
            "grey": self.grey,
            "sums": self._sums.tolist(),
            "repeats": self._repeats.tolist(),
            "lattice": self._lattice.tolist(),
            "looked_at": self._looked_at,
        }

    @classmethod
    def of_plain(cls, content: dict[str, Any]) -> Appearance:
        """What :meth:`plain` has made.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        found = cls(
            Counter(content["formats"]),
            Counter({(height, width): count for height, width, count in content["sizes"]}),
            content["grey"],
        )
        for name in ("sums", "repeats", "lattice"):
            setattr(found, f"_{name}", torch.tensor(content[name], dtype=torch.float64))
        found._looked_at = content["looked_at"]
        return found

    @property
    def blocks(self) -> float | None:
        """Difference of pixels at the borders of JPEG's blocks over that elsewhere; about 1."""
        return None if not self._looked_at else float(self._sums[0] / self._sums[1].clamp_min(1e-9))

    @property
    def quantised(self) -> float | None:
        """How near the blocks' cosine transform is to multiples of a step: 1 after JPEG, else 0."""
        return nearness(self._lattice)

    @property
    def repeated(self) -> float:
        """Share of the rows and columns that repeat the one before them."""
        return float(self._repeats[0] / self._repeats[1].clamp_min(1))

    @property
    def sharpness(self) -> float | None:
        """Difference of neighbouring pixels over that of pixels four apart."""
        return None if not self._looked_at else float(self._sums[2] / self._sums[3].clamp_min(1e-9))


def unlike(ours: Appearance, theirs: Appearance) -> list[str]:
    """One line for each way in which two sets were treated differently, as far as it shows."""
    notes = []
    if set(ours.sizes) != set(theirs.sizes):
        notes.append(
            f"sizes differ ({described(ours.sizes)}; reference {described(theirs.sizes)}): "
            "the extractor resizes each side by another factor"
        )
    grey = [side.grey / max(side.sizes.total(), 1) for side in (ours, theirs)]
    if abs(grey[0] - grey[1]) > 0.5:
        notes.append(f"grey images on one side only ({grey[0]:.0%}; reference {grey[1]:.0%})")
    unlike_files = [note for kind in LOSSY if (note := files_unlike(ours, theirs, kind))]
    if unlike_files:
        notes += unlike_files
    elif quantised(ours.quantised, theirs.quantised):
        notes.append(
            f"one side went through JPEG, whatever its format is now (its steps show by "
            f"{ours.quantised:.2f} of 1; reference {theirs.quantised:.2f})"
        )
    elif far_apart(ours.blocks, theirs.blocks, BLOCKS):
        notes.append(
            f"traces of JPEG's blocks, or of resizing, on one side (steps at their borders "
            f"{ours.blocks:.2f} times those elsewhere; reference {theirs.blocks:.2f})"
        )
    if abs(ours.repeated - theirs.repeated) > REPEATED:
        notes.append(
            f"one side was enlarged by repeating pixels ({ours.repeated:.0%} of rows and columns "
            f"repeat the one before; reference {theirs.repeated:.0%})"
        )
    if far_apart(ours.sharpness, theirs.sharpness, SHARPNESS):
        notes.append(
            f"one side is smoother, as resized images are (steps of neighbouring pixels "
            f"{ours.sharpness:.2f} of those four apart; reference {theirs.sharpness:.2f})"
        )
    return notes


def files_unlike(ours: Appearance, theirs: Appearance, kind: str) -> str | None:
    """What to say of files of a kind on one side, where both sides are files."""
    if not ours.formats or not theirs.formats:
        return None
    first, second = (side.formats[kind] / side.formats.total() for side in (ours, theirs))
    if abs(first - second) <= 0.5:
        return None
    return f"{kind} on one side only ({first:.0%} of the files; reference {second:.0%})"


def quantised(ours: float | None, theirs: float | None) -> bool:
    """Whether JPEG's steps show on one side, and clearly not on the other."""
    if ours is None or theirs is None:
        return False
    return max(ours, theirs) > QUANTISED and min(ours, theirs) < QUANTISED / 2


def far_apart(a: float | None, b: float | None, ratio: float) -> bool:
    """Whether two figures differ by more than that factor."""
    return a is not None and b is not None and not 1 / ratio <= a / max(b, 1e-9) <= ratio


def described(sizes: Counter[tuple[int, int]]) -> str:
    """The most common size, and how many others there are."""
    (height, width), _ = sizes.most_common(1)[0]
    others = f" and {len(sizes) - 1} more" if len(sizes) > 1 else ""
    return f"{height}×{width}{others}"
