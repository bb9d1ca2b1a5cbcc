"""Pages of the site from the notebooks: what they say, their code, and the outputs in them."""

from __future__ import annotations

import base64
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

SUFFIXES = {"image/png": "png", "image/gif": "gif"}
SOURCE = "This page is a notebook: [download it]({name}.ipynb){{ download }}."


def on_files(files: Files, config: Any) -> Files:
    """Add a page and its pictures for each notebook; mkdocs calls this.

    The notebook stays, to be downloaded; a link to it from another page goes to its page.
    """
    from mkdocs.structure.files import File  # tests make the pages without mkdocs

    notebooks = [file for file in files if file.src_uri.endswith(".ipynb")]
    for notebook in notebooks:
        name = notebook.src_uri.removesuffix(".ipynb")
        text, pictures = page(Path(notebook.abs_src_path))
        files.append(File.generated(config, f"{name}.md", content=text))
        for picture, content in pictures.items():
            path = f"{name.rpartition('/')[0]}/{picture}"
            files.append(File.generated(config, path, content=content))
    return files


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text.replace(".ipynb)", ".md)"))
            continue
        code = f"```python\n{text}\n```"
        if "hide-input" in cell["metadata"].get("tags", []):  # Jupyter Book's name for it
            code = '??? note "The code"\n\n' + textwrap.indent(code, "    ")
        parts.append(code)
        for output in cell["outputs"]:
            data = {"text/plain": output.get("text", ""), **output.get("data", {})}
            kind = next((kind for kind in SUFFIXES if kind in data), "text/plain")
            content = "".join(data[kind])
            if kind == "text/plain":
                parts.append(f"```text\n{content.rstrip()}\n```")
            else:
                name = f"{path.stem}_{len(pictures)}.{SUFFIXES[kind]}"
                pictures[name] = base64.b64decode(content)
                parts.append(f"![What this draws]({name}){{ .drawn }}")
    parts.append("---\n\n" + SOURCE.format(name=path.stem))
    return "\n\n".join(parts) + "\n", pictures
