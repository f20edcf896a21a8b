"""Writes the pages of the reference: every public name, from its docstring."""

import importlib
import inspect
from pathlib import Path

import optfn
from website import bowls
from website.catalog import KINDS, LEGS, Page, first_sentence, kinds, pages
from website.docstrings import escaped

TITLES = {
    "elementwise": "Optimizers of every entry by itself",
    "layerwise": "Optimizers that look at a whole array",
    "adaptive": "Optimizers that find their learning rate",
    "matrix": "Optimizers of matrices",
    "curvature": "Optimizers with an estimate of the curvature",
    "quasi_newton": "Quasi-Newton methods and line searches",
}
assert TITLES.keys() == set(KINDS)


def write(folder: Path) -> None:
    """Writes all pages into a folder; the pictures of the bowl are in its folder `bowls`."""
    for page in pages():
        path = folder / f"{page.place}.rst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(page))
    for kind, members in kinds().items():
        (folder / f"{kind}.rst").write_text(_kind(kind, members))
    (folder / "index.rst").write_text(_index())


def _page(page: Page) -> str:
    parts = [_title(page.title), f".. py:currentmodule:: {page.module}\n"]
    parts += [_entry(page, name) for name in page.names]
    return "\n".join(parts)


def _entry(page: Page, name: str) -> str:
    thing = getattr(importlib.import_module(page.module), name)
    lines = [f".. {_directive(thing)}:: {page.module}.{name}"]
    if inspect.isclass(thing) and not issubclass(thing, optfn.Transform | optfn.Schedule):
        lines.append("   :members:")
    if thing in (optfn.Transform, optfn.Schedule):
        lines.append("   :members:")
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        lines.append("   :no-value:")
    lines.append("")
    if page.module == "optfn" and name in LEGS:
        lines += [f"   {line}".rstrip() for line in _evidence(name, page)]
    return "\n".join(lines) + "\n"


def _directive(thing: object) -> str:
    if inspect.isclass(thing):
        return "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


def _evidence(name: str, page: Page) -> list[str]:
    """The picture of an optimizer and its row of legs."""
    leg = LEGS[name]
    other = bowls.LIKE.get(name)
    up = "../" * page.place.count("/")
    picture = (
        [f"On the bowl it walks as `{other}` does.", ""]
        if other
        else [
            f".. image:: {up}bowls/{name}.png",
            f"   :alt: The path of {name} on an elongated bowl, and its loss by step.",
            "",
        ]
    )
    stages = ", ".join(f"`{stage}`" for stage in leg.stages)
    golden = ", ".join(leg.golden) or "none"
    rows = {
        "Made of": stages,
        "Oracle": "equal to the paper in float64, written independently",
        "optax": "the same path as optax's" if leg.optax else "not in optax under this name",
        "Golden": f"recorded paths of {golden}" if leg.golden else "none",
        "Theorem": leg.claim,
    }
    table = [".. list-table::", "   :widths: 15 85", ""]
    for what, text in rows.items():
        table += [f"   * - {what}", f"     - {escaped(text)}"]
    return [*picture, *table, ""]


def _kind(kind: str, members: list[Page]) -> str:
    entries = [f"   {page.place}" for page in sorted(members, key=lambda p: p.place)]
    optimizers = [name for page in members for name in page.names if name in LEGS]
    toctree = ["", ".. toctree::", "   :hidden:", "", *entries, ""]
    return "\n".join([_title(TITLES[kind]), *_wall(members, optimizers), *toctree])


def _wall(members: list[Page], optimizers: list[str]) -> list[str]:
    """The pictures of some optimizers, each a link to its page."""
    place = {name: page.place for page in members for name in page.names}
    lines = [".. container:: wall", ""]
    for name in optimizers:
        if name not in bowls.LIKE:
            lines += [
                f"   .. figure:: bowls/{name}.png",
                f"      :alt: The path of {name} on an elongated bowl.",
                f"      :target: {place[name]}.html",
                "",
                f"      :py:obj:`{name} <optfn.{name}>`",
                "",
            ]
    rest = [n for page in members for n in page.names if n not in optimizers or n in bowls.LIKE]
    return [*lines, *_table("optfn", rest)]


def _index() -> str:
    parts = [
        _title("Reference"),
        "Every public name, grouped as in ``optfn/__init__.py``. Each optimizer has its rule, its",
        "path on the elongated bowl of the first lecture, and the evidence that it is right.\n",
    ]
    single = [page for page in pages() if "/" not in page.place]
    for page in single:
        parts += [_heading(page.title), *_table(page.module, page.names)]
        if page.place == "the_training_loop":
            for kind, members in kinds().items():
                names = [name for member in members for name in member.names]
                parts += [_heading(TITLES[kind]), *_table("optfn", names)]
    toctree = [".. toctree::", "   :hidden:", ""]
    toctree += [f"   {kind}" for kind in kinds()] + [f"   {page.place}" for page in single]
    return "\n".join([*parts, *toctree, ""])


def _table(module: str, names: list[str]) -> list[str]:
    lines = [".. list-table::", "   :widths: 30 70", ""] if names else []
    for name in names:
        thing = getattr(importlib.import_module(module), name)
        text = first_sentence(thing) if inspect.isclass(thing) or inspect.isroutine(thing) else ""
        lines += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {escaped(text)}"]
    return [*lines, ""]


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _heading(text: str) -> str:
    return f"{text}\n{'-' * len(text)}\n"
