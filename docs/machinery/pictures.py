"""Draw the pictures of the site: ``python docs/machinery/pictures.py``; they are kept in git.

Each regularizer's picture shows what descent on it alone makes of directions that start together,
on a sphere in three dimensions, where they can be seen.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from mhe_core import create_regularizer
from mhe_core.registry import list_regularizers
from torch import Tensor

ASSETS = Path(__file__).parents[1] / "assets"
INK, BEFORE, AFTER = "#808080", "#808080", "#e8871e"  # seen on white and on black
N, STEPS = 12, 400

# In three dimensions there is little to compress: to two, so that a projection is at work.
OPTIONS: dict[str, dict[str, Any]] = {
    "comhe_random": {"projection_dim": 2, "num_projections": 8},
    "comhe_angle": {"projection_dim": 2},
    "comhe_adversarial": {"projection_dim": 2},
    "comhe_group": {"group_dim": 2, "num_groups": 8},
    # The pole as fast as the neurons, whose steps here do not shrink with the published weight.
    "mhc": {"inner_weight": 1.0},
}

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "pictures",  # the same file each time
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
    }
)


def bundle() -> Tensor:
    """Directions ``[N, 3]`` that start together, about a pole that can be seen."""
    generator = torch.Generator().manual_seed(3)
    pole = torch.tensor([0.35, -0.85, 0.4], dtype=torch.float64)
    spread = 0.3 * torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(pole + spread, dim=-1)


def descend(name: str, **options: Any) -> Tensor:
    """The ways of the directions, ``[STEPS + 1, N, 3]``, in steps that grow shorter."""
    torch.manual_seed(0)
    w = bundle()
    regularizer = create_regularizer(name, *w.shape, **options).double()
    ways = [w]
    for step in range(STEPS):
        w = w.detach().requires_grad_()
        regularizer.update(w.detach(), 0.05)
        (g,) = torch.autograd.grad(regularizer(w), w)
        longest = torch.linalg.vector_norm(g, dim=-1).max()
        rate = 0.05 * math.cos(math.pi / 2 * step / STEPS)
        w = w - rate * g / longest if longest > 1e-12 else w
        ways.append(w.detach())
    return torch.nn.functional.normalize(torch.stack(ways), dim=-1).detach()


def draw_sphere(axis: Any) -> None:
    """Its outline, with some circles of latitude."""
    turn = torch.linspace(0, 2 * math.pi, 181)
    axis.plot(turn.cos(), turn.sin(), color=INK, linewidth=1.2)
    for latitude in (-0.5, 0.0, 0.5):
        radius = math.sqrt(1 - latitude**2)
        circle = torch.stack(
            [radius * turn.cos(), radius * turn.sin(), torch.full_like(turn, latitude)], -1
        )
        x, y, depth = seen(circle.double()).unbind(-1)
        front = torch.where(depth > 0, y, torch.nan)
        axis.plot(x, front, color=INK, linewidth=0.6, alpha=0.5)
    axis.set_aspect("equal")
    axis.set_xlim(-1.08, 1.08)
    axis.set_ylim(-1.08, 1.08)
    axis.axis("off")


def seen(x: Tensor) -> Tensor:
    """Coordinates on the paper, and towards the eye, which looks down by 20 degrees."""
    tilt = math.radians(20)
    right, away, up = x.unbind(-1)
    height = up * math.cos(tilt) + away * math.sin(tilt)
    depth = -away * math.cos(tilt) + up * math.sin(tilt)
    return torch.stack([right, height, depth], -1)


def draw_points(axis: Any, points: Tensor, color: str) -> None:
    """Points ``[N, 3]``; those behind are pale."""
    for x, y, depth in seen(points).tolist():
        front = depth >= 0
        axis.plot(
            x,
            y,
            "o",
            color=color,
            markersize=8 if front else 6,
            alpha=1.0 if front else 0.35,
            markeredgewidth=0,
        )


def smallest_angle(points: Tensor) -> float:
    """In degrees."""
    cosines = (points @ points.mT).fill_diagonal_(-1).clamp(-1, 1)
    return math.degrees(math.acos(cosines.max().item()))


def draw(ways: Tensor, path: Path) -> None:
    """Before, the ways, and after."""
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    before, after = figure.subplots(1, 2)
    for axis, points, color, word in (
        (before, ways[0], BEFORE, "before"),
        (after, ways[-1], AFTER, "after"),
    ):
        draw_sphere(axis)
        if axis is after:
            for way in seen(ways).unbind(1):
                x, y, depth = way.unbind(-1)
                axis.plot(
                    x, torch.where(depth > 0, y, torch.nan), color=AFTER, linewidth=0.8, alpha=0.45
                )
        draw_points(axis, points, color)
        axis.set_title(f"{word}: smallest angle {smallest_angle(points):.0f}°", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    """Draw what is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of regularizers; all by default")
    names = parser.parse_args().names or [info.name for info in list_regularizers()]
    for name in names:
        ways = descend(name, **OPTIONS.get(name, {}))
        draw(ways, ASSETS / "regularizers" / f"{name}.svg")
        print(f"{name}: {smallest_angle(ways[0]):.1f}° to {smallest_angle(ways[-1]):.1f}°")


if __name__ == "__main__":
    main()
