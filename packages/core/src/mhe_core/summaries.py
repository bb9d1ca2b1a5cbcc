"""What a plug-in says about itself in one line, read from its source without importing it."""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder

__all__ = ["summarize"]


def summarize(module: str, attribute: str, default: str) -> str:
    """First line of the docstring of ``module:attribute``.

    Args:
        module: dotted name of the module that the plug-in's target is in.
        attribute: dotted name of the target in it.
        default: the answer where no docstring can be read: the target is defined elsewhere, is
            compiled, or has none.

    Returns:
        One line. Where it is plain that the import would fail — there is no such module, or it is
        not Python — the line starts with "broken:" and says why.

    Example:
        >>> summarize("mhe_core.energy.rows", "directions", default="")
        'Unit rows; a zero row stays zero and gets zero gradient.'
        >>> summarize("mhe_core.absent", "Anything", default="")
        "broken: no module named 'mhe_core.absent'"
    """
    try:
        spec = find_without_importing(module)
        if spec is None:
            return f"broken: no module named {module!r}"
        get_source = getattr(spec.loader, "get_source", None)
        source = get_source(module) if get_source else None
        docstring = docstring_in(source or "", attribute)
    except SyntaxError as error:
        return f"broken: {module}, line {error.lineno}: {error.msg}"
    except Exception:  # a finder or loader of someone else's: the line is a courtesy
        return default
    return docstring.splitlines()[0] if docstring else default


def find_without_importing(module: str) -> ModuleSpec | None:
    """The module's spec; ``importlib.util.find_spec`` would import the packages it is in."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


@lru_cache(maxsize=256)
def docstring_in(source: str, attribute: str) -> str | None:
    """The docstring of that class or function; remembered, as parsing takes milliseconds."""
    definition = find_definition(ast.parse(source), attribute)
    return ast.get_docstring(definition) if definition else None


def find_definition(
    tree: ast.Module, attribute: str
) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The last top-level class or function of that name."""
    for node in reversed(tree.body):
        if (
            isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name == attribute
        ):
            return node
    return None
