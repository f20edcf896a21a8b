"""Who gets what: how an optimizer treats each leaf of the params, and the bytes of its state."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from optfn.core.matrix_axes import MatrixAxes
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.slot_paths import place_in
from optfn.core.text_table import in_columns, number
from optfn.core.transform import Inner, Transform, as_transform, readable_state
from optfn.core.tree import PyTree, bare, leaf_paths, path_string

WIDTH = 100  # of the lines of text that are not a table


@dataclass(frozen=True)
class Row:
    """How an optimizer treats one leaf.

    Attributes:
        path: of the leaf, such as `"layers_0/kernel"`.
        shape, dtype: of the param.
        view: how it is a matrix, as the first stage for matrices sees it; None if it is none.
        stages: the names of the stages that act on it, in order, the outer before the inner. One in
            a group has the group's name, such as `"partition.matrix"`, before it. `"freeze: none"`
            says that nothing inside of a wrapper acts on the leaf.
        learning_rate: of these stages; None without one, a tuple of several.
        weight_decay: likewise, where the leaf decays.
        slots: the bytes of each slot that belongs to it, by the slot's qualified name.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    view: MatrixAxes | None
    stages: tuple[str, ...]
    learning_rate: Any
    weight_decay: Any
    slots: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of its entries."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes of the param."""
        return self.size * self.dtype.itemsize

    @property
    def state_bytes(self) -> int:
        """The bytes of the slots that belong to it."""
        return sum(self.slots.values())


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` found. It prints as a table; the numbers are in its attributes.

    Attributes:
        rows: a `Row` for each leaf of the params.
        shared: the bytes of what belongs to no leaf, by qualified name: counters, numbers of the
            whole tree, vectors of many leaves.
    """

    rows: tuple[Row, ...]
    shared: dict[str, int]

    @cached_property
    def slots(self) -> dict[str, int]:
        """The bytes of each slot, of all leaves together, and of what is shared."""
        total = Counter()
        for slots in (*(row.slots for row in self.rows), self.shared):
            total.update(slots)
        return dict(total)

    @property
    def params(self) -> int:
        """The number of entries of all params."""
        return sum(row.size for row in self.rows)

    @property
    def param_bytes(self) -> int:
        """The bytes of all params."""
        return sum(row.bytes for row in self.rows)

    @property
    def state_bytes(self) -> int:
        """The bytes of the state."""
        return sum(self.slots.values())

    @property
    def bytes_per_param(self) -> float:
        """The bytes of the state over the number of entries; 0 without params."""
        return self.state_bytes / max(self.params, 1)

    def __repr__(self) -> str:
        ways = {way: str(i) for i, way in enumerate(dict.fromkeys(r.stages for r in self.rows), 1)}
        legend = "\n".join(
            textwrap.fill(
                f"{i}: {' > '.join(way) or 'none'}",
                WIDTH,
                subsequent_indent=" " * (len(i) + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
            for way, i in ways.items()
        )
        leaves = [
            [
                row.path or "(the root)",
                _shape(row.shape),
                row.dtype.name,
                _matrices(row),
                ways[row.stages],
                _values(row.learning_rate),
                _values(row.weight_decay),
                f"{row.state_bytes:,}",
            ]
            for row in self.rows
        ]
        heads = ["param", "shape", "dtype", "matrices", "stages", "rate", "decay", "state bytes"]
        slots = [
            [name, f"{n:,}", f"{n / max(self.params, 1):.4g}"] for name, n in self.slots.items()
        ]
        total = ["total", f"{self.state_bytes:,}", f"{self.bytes_per_param:.4g}"]
        parts = [
            in_columns([heads, *leaves], left=(0, 1, 2, 3)),
            f"stages\n{legend}" if legend else "",
            in_columns([["slot", "bytes", "a param"], *slots, total], left=(0,)),
            f"{self.params:,} params of {self.param_bytes:,} bytes",
        ]
        return "\n\n".join(filter(None, parts))


def summary(
    tx: optax.GradientTransformation, params: PyTree, state: optax.OptState | None = None
) -> Summary:
    """Who gets what: the stages, the rate, the decay and the bytes of state of every leaf.

        print(optfn.summary(optfn.muon(0.02), params))

    Nothing is allocated: before a model is made, `jax.eval_shape` of its initialization gives the
    params. Optax transformations are taken too; their numbers are closed over and are not shown.

    Args:
        tx: an optimizer or a stage.
        params: arrays or `jax.ShapeDtypeStruct`s.
        state: a state of theirs, at whose steps schedules are read and whose arrays are counted;
            None for the first.

    Returns:
        A `Summary`, which prints as a table.

    Raises:
        ValueError: as `tx.init(params)` does.
    """
    tx = as_transform(tx, "summary(tx, params): tx")
    params = jax.eval_shape(lambda tree: tree, bare(params))
    state = readable_state(jax.eval_shape(tx.init, params) if state is None else state)
    visits: list[_Visit] = []

    def look(params: PyTree) -> None:
        # Masks, labels and views may be functions of arrays.
        visits.extend(_visits(tx, state.slots, state.step, params))

    jax.eval_shape(look, params)
    acting = {path: [v for v in visits if path in v.leaves] for path in leaf_paths(params)}
    slots, shared = _bytes(state, params)
    rows = [
        Row(
            path,
            leaf.shape,
            np.dtype(leaf.dtype),
            next((view for v in acting[path] if (view := v.leaves[path].view)), None),
            tuple(shown for v in acting[path] if (shown := v.leaves[path].shown)),
            _numbers("learning_rate", acting[path], path),
            _numbers("weight_decay", acting[path], path),
            slots.get(path, {}),
        )
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    ]
    return Summary(tuple(rows), shared)


class _Leaf(NamedTuple):
    """What a stage makes of a leaf: its name as it is shown, the view, and whether it decays."""

    shown: str | None
    view: MatrixAxes | None
    decays: bool


class _Visit(NamedTuple):
    """A stage, or a group, with the leaves it acts on by path."""

    stage: Transform | None
    slots: Any
    step: Any
    leaves: dict[str, _Leaf]


def _visits(tx: Transform, named: Any, step: Any, params: PyTree) -> Iterator[_Visit]:
    """Every stage and every group, also without slots, the outer before the inner."""
    slots = tx.slots_among(named)
    inner = tx.inner_transforms(slots, step, params)
    if tx.name is not None:
        yield _Visit(tx, slots, step, _leaves(tx, params, inner))
    for one in inner:
        if one.is_group:
            name = ".".join(filter(None, (tx.name, *one.names)))
            leaves = dict.fromkeys(leaf_paths(one.params), _Leaf(name, None, False))
            yield _Visit(None, None, None, leaves)
        yield from _visits(one.transform, *one.place)


def _leaves(tx: Transform, params: PyTree, inner: list[Inner]) -> dict[str, _Leaf]:
    paths = leaf_paths(params)
    inside = {path for one in inner for path in leaf_paths(one.params)}
    given = {name: value.values(params) for name, value in tx.fields("per_leaf") if value}
    views = given.get("views", [None] * len(paths))
    masks = given.get("mask", [True] * len(paths))

    def shown(path: str) -> str | None:
        if any(one.is_group for one in inner) and path in inside:
            return None  # the group's name says it
        return f"{tx.name}: none" if inner and path not in inside else tx.name

    return {
        path: _Leaf(shown(path), view if view and view.is_matrix else None, mask is not False)
        for path, view, mask in zip(paths, views, masks, strict=True)
    }


def _numbers(name: str, visits: list[_Visit], path: str) -> Any:
    """The values of a number of the stages that act on a leaf."""
    found = []
    for visit in visits:
        stage = visit.stage
        if stage is None or getattr(stage, name, None) is None:
            continue
        decays = name != "weight_decay" or visit.leaves[path].decays
        if name in dict(stage.fields("number")) and decays:
            at = stage.schedule_step(visit.slots, visit.step)
            at = 0 if isinstance(at, (jax.ShapeDtypeStruct, Tracer)) else at
            number = getattr(stage.resolve(at), name)
            found.append(
                _known(number.at_path(path) if isinstance(number, NumberByPath) else number)
            )
    return tuple(found) if len(found) > 1 else found[0] if found else None


def _known(x: Any) -> Any:
    """A float, or an array of them."""
    return float(x) if np.ndim(x) == 0 else np.asarray(x)


def _bytes(state: Any, params: PyTree) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """The bytes by leaf and slot, and those of what belongs to no leaf by slot."""
    paths = {path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    own: dict[str, dict[str, int]] = {}
    shared: dict[str, int] = {"step": _nbytes(state.step)}
    for path, x in jax.tree_util.tree_flatten_with_path(bare(state.slots))[0]:
        part = place_in(path, paths, x)
        kept = own.setdefault(path_string(path[part]), {}) if part else shared
        name = ".".join(filter(None, map(_entry, path[: part.start] if part else path)))
        kept[name] = kept.get(name, 0) + _nbytes(x)
    return own, shared


def _entry(key: Any) -> str | None:
    """An entry of a path as it stands in qualified names: what a wrapper keeps is not named."""
    text = path_string((key,))
    return None if text in ("inner", "slots") else text


def _nbytes(x: Any) -> int:
    return prod(x.shape) * x.dtype.itemsize


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


def _matrices(row: Row) -> str:
    """The matrices of a leaf, such as `12 of 768 x 256`, rows x columns."""
    if row.view is None:
        return "-"
    stack, _, _ = row.view.axes(row.shape)
    sides, count = row.view.sides(row.shape), prod(row.shape[axis] for axis in stack)
    text = _shape(sides) if not stack else f"{count} of {_shape(sides)}"
    return text if row.view.block is None else f"{text} in blocks of {row.view.block}"


def _values(x: Any) -> str:
    """A number, several, or the range of a batch."""
    if x is None:
        return "-"
    if isinstance(x, tuple):
        return ", ".join(map(_values, x))
    if np.ndim(x):
        return f"{number(float(np.min(x)))} to {number(float(np.max(x)))}"
    return number(x)
