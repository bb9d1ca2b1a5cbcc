"""A page for each regularizer of the project, from the registry and the docstrings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mhe_core.cli.info import described
from mhe_core.registry import list_regularizers

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

INSTALL = {"mhe-core": "./packages/core", "mhe-uniformity": "./packages/core ./packages/uniformity"}

# What a step takes beyond reading the weight: N neurons of d dimensions, k of a projection.
TILES = "time N²d, memory of a tile of the N × N cosines beside the gradient's N × d"
PROJECTED = "time Ndk to project and N²k for the energy, for each projection; memory of N × k"
NEAREST = "time N²d to find the neighbours, tile by tile; the gradient is of N pairs only"
COSTS = {
    "mhe": TILES,
    "half_mhe": TILES,
    "hug": TILES,
    "uniformity": TILES,
    "uniformface": TILES,
    "comhe_random": PROJECTED
    + "; 20 projections of 30 dimensions by default, drawn anew each step",
    "comhe_angle": PROJECTED + "; a step of training the projection, too",
    "comhe_adversarial": PROJECTED + "; a step of training the projection, too",
    "comhe_group": "time N²k for each group of k dimensions",
    "mhs": NEAREST,
    "mma": NEAREST,
    "koleo": NEAREST,
    "regularface": NEAREST,
    "mhp": "time Nd for each of the pole's inner steps",
    "mhc": "time Nd for each of the pole's inner steps",
    "rmhp": "time Nd",
    "mgd": "time N²d + N³ in float64, memory of N × N matrices",
    "so": "time Ndm and memory of m × m, m the smaller of N and d",
    "dso": "time Ndm and memory of m × m, m the smaller of N and d",
    "mc": "time Ndm, part by part, m the smaller of N and d",
    "srip": "by default eigenvalues of an m × m matrix, m the smaller of N and d: time m³ + Ndm; "
    "the programs' variants take Nd",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and their part of the navigation; mkdocs calls this."""
    from mkdocs.structure.files import File  # tests make the pages without mkdocs

    infos = [described(info.name) for info in ours()]
    texts = {f"regularizers/{info['name']}.md": page(info) for info in infos}
    texts["regularizers/index.md"] = index(infos)
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    (section,) = (entry["Regularizers"] for entry in config.nav if "Regularizers" in entry)
    section[:] = ["regularizers/index.md"]
    section += [{info["name"]: f"regularizers/{info['name']}.md"} for info in infos]
    return files


def ours() -> list[Any]:
    """Core's regularizers, then those of uniformity, by name; not those that happen to be there."""
    found = [info for info in list_regularizers() if info.distribution in INSTALL]
    return sorted(found, key=lambda info: (info.distribution, info.name))


def index(infos: list[dict[str, Any]]) -> str:
    """The page that lists them."""
    rows = "\n".join(
        f"| [`{info['name']}`]({info['name']}.md) | {info['summary']} | {linked(info['paper'])} |"
        for info in infos
    )
    return f"""# Regularizers

`mhe list` prints these, with those of any other installed distribution. Which one when:
[When to use it](../guide/when.md).

| name | what it minimizes | paper |
|---|---|---|
{rows}
"""


def page(info: dict[str, Any]) -> str:
    """One regularizer's page."""
    name = info["name"]
    module, _, factory = info["target"].partition(":")
    can = info["capabilities"] or {}
    defaults = [f"`{key}={value!r}`" for key, value in info["hyperparameters"].items()]
    facts = {
        "Paper": linked(info["paper"]),
        "Published weight": weights(info),
        "Hyperparameters": ", ".join(defaults) or "none",
        "Cost of a step": COSTS[name],
        "State": "advanced by `update`, once a step" if can.get("updates") else "none",
        "Install": f"`pip install {INSTALL[info['distribution']]}`",
    }
    rows = "\n".join(f"| **{key}** | {value} |" for key, value in facts.items())
    weight = info["published_weight"]
    weighted = "" if weight in (None, 1.0) else f", hidden_weight={weight:g}"
    return f"""# {name}

{info["summary"]}

![Directions before and after, on the sphere](../assets/regularizers/{name}.svg){{ .picture }}

| | |
|---|---|
{rows}

```python
import torch
from mhe_core import NetworkRegularizer, create_regularizer

neurons = torch.nn.Linear(64, 32).weight  # [N, d]
value = create_regularizer("{name}", *neurons.shape)(neurons)

model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 10))
regularizer = NetworkRegularizer(model, hidden="{name}"{weighted})
```

## Definition

::: {module}.{factory}
    options: {{heading_level: 3, members: false}}
"""


def weights(info: dict[str, Any]) -> str:
    """The published weights, in words."""
    hidden, output = info["published_weight"], info["published_output_weight"]
    words = [f"{hidden:g} in hidden layers"] if hidden is not None else []
    if output is not None:
        words.append(f"{output:g} in the output layer")
    return "; ".join(words) or "none"


def linked(paper: str) -> str:
    """A paper's name with its arXiv number as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
