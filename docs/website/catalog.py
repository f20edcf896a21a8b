"""The public names, in the groups of `optfn/__init__.py`, and on which page of the site each is."""

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from legs import LEGS

NAMESPACES = {
    "projections": "Sets that `projected` keeps params in.",
    "recipes": "Usual settings, as ordinary optimizers.",
    "schedules": "Numbers that change from step to step.",
    "linalg": "Linear algebra of stacks of matrices.",
    "storage": "Slots in low precision.",
    "sweep": "Many runs in one program.",
    "testing": "The conformance kit, and problems to test optimizers on.",
}
OPTIMIZERS = "Optimizers and their directions"


class Page(NamedTuple):
    """A page of the reference.

    Attributes:
        place: where it is, below `reference/` and without an ending.
        title: its title.
        module: the module that the names are read from.
        names: the public names on it, in order.
    """

    place: str
    title: str
    module: str
    names: list[str]


def grouped(path: Path) -> dict[str, dict[str, str]]:
    """The names that an `__init__.py` imports, by the comment above them, with their modules."""
    text = path.read_text()
    comments = {
        i: line[2:].rstrip(".")
        for i, line in enumerate(text.splitlines(), 1)
        if line.startswith("# ")
    }
    groups: dict[str, dict[str, str]] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        title = next((t for i, t in sorted(comments.items(), reverse=True) if i < node.lineno), "")
        for alias in node.names:
            if alias.asname == alias.name:
                groups.setdefault(title, {})[alias.name] = node.module
    return groups


@cache
def pages() -> list[Page]:
    """All pages of the reference."""
    found = []
    for title, names in grouped(ROOT / "optfn/__init__.py").items():
        if title == OPTIMIZERS:
            found += _families(names)
            continue
        own = [name for name in names if name not in NAMESPACES]
        if own:
            found.append(Page(_slug(title), title, "optfn", own))
    for name, text in NAMESPACES.items():
        module = importlib.import_module(f"optfn.{name}")
        title = f"optfn.{name}: {text[0].lower()}{text[1:-1]}"
        found.append(Page(name, title, module.__name__, _public(module)))
    return found


def _families(names: dict[str, str]) -> list[Page]:
    """A page for each file of optimizers, which holds a family; the optimizers before stages."""
    families: dict[str, list[str]] = {}
    for name, module in names.items():
        families.setdefault(module, []).append(name)
    found = []
    for module, members in families.items():
        *_, kind, family = module.split(".")
        members.sort(key=lambda name: name not in LEGS)
        title = (inspect.getdoc(importlib.import_module(module)) or "").splitlines()[0].rstrip(".")
        found.append(Page(f"{kind}/{family}", title, "optfn", members))
    return found


def kinds() -> dict[str, list[Page]]:
    """The pages of optimizers by the folder that they are in."""
    found: dict[str, list[Page]] = {}
    for page in pages():
        if "/" in page.place:
            found.setdefault(page.place.partition("/")[0], []).append(page)
    return dict(sorted(found.items(), key=lambda item: KINDS.index(item[0])))


KINDS = ("elementwise", "layerwise", "adaptive", "matrix", "curvature", "quasi_newton")


def _public(module: Any) -> list[str]:
    """The names that a module shows: what its `__init__.py` imports, or what it defines."""
    path = Path(inspect.getfile(module))
    if path.name == "__init__.py":
        names = [name for group in grouped(path).values() for name in group]
    else:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and inspect.isclass(value)
            and value.__module__ == module.__name__
        ]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def _slug(title: str) -> str:
    return re.sub(r"\W+", "_", title.partition(":")[0].partition(",")[0].lower()).strip("_")


def first_sentence(thing: Any) -> str:
    """What a docstring begins with."""
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s(?=[A-Z`])", text)[0].rstrip(":")
