"""What the slots of a stage are in optax's state, and back."""

from collections.abc import Callable, Collection
from functools import cache, reduce
from operator import add
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from optfn.compose.accumulate import accumulate
from optfn.core.optax_fields import optax_names_of
from optfn.core.placement import put_like
from optfn.core.state import State
from optfn.core.tree import PyTree
from optfn.interop.optax_stages import (
    COUNTS,
    INNER,
    NONE_YET,
    OTHER_COUNT,
    RENEWED,
    ROUND,
    Pair,
    children,
    show_path,
)
from optfn.optimizers.quasi_newton.lbfgs import scale_by_lbfgs

# Squares in optax's state of what is a root here.
SQUARES = (
    *("estim_sq_dist", "sum_sq_norm_grads", "weighted_sq_norm_grads"),
    "v of mechanize",
)
# What stages call otherwise, beside `optax_names_of`, by the name of the slot.
OTHERS = {"mechanize": {"spread": "v"}, "reduce_on_plateau": {"avg_count": "count"}}
# The shapes of arrays that stand for nothing: for what a factored moment or a projection lacks.
STAND_INS = {"FactoredState": (1,), "GaLoreState": (0, 0)}
COMPUTED = (("schedule_free", "x"),)
# Hyperparameters in optax's state, and the same as `RENEWED` there.
NOT_OURS = ("ns_coeffs", "b1", "info", "last_finite")


def slots_from(pair: Pair, params: PyTree) -> dict[str, Any]:
    """The slots of a stage, by their names, from its part of optax's state."""
    special = _special(pair)
    if special is not None:
        return special.read(pair)
    found, used = {}, set[str]()
    for name, slot, other in _fields(pair):
        where = f"{show_path(pair.part.path)}.{other}"
        value = getattr(pair.part.state, other)
        found[name] = carried(
            _rooted(pair, other, value, jnp.sqrt), slot, where, STAND_INS.get(pair.part.kind)
        )
        used.add(other)
    _check_all_are(used, pair)
    if jax.tree.leaves(getattr(pair.slots, "x", None)) and "share" in found:
        found["x"] = _average(pair.slots.x, found, params)
    return found


def fields_from(pair: Pair, count: Any) -> dict[str, Any]:
    """The inverse: the fields of the part of optax's state, without counts and inner states.

    Args:
        pair: a stage and its part.
        count: the number of updates that the stage has made.
    """
    special = _special(pair)
    if special is not None:
        return special.write(pair, count)
    found: dict[str, Any] = {}
    for name, slot, other in _fields(pair):
        old = getattr(pair.part.state, other)
        where = f"{'.'.join(pair.names)}.{name}"
        found[other] = carried(
            _rooted(pair, other, slot, jnp.square), old, where, STAND_INS.get(pair.part.kind)
        )
    _check_all_are(found, pair)
    return found


def _check_all_are(used: Collection[str], pair: Pair) -> None:
    """Refuses fields of optax's that are none of these and no counts or the like."""
    for other, _ in children(pair.part.state):
        known = other in (*COUNTS, *NONE_YET, ROUND, *INNER, *NOT_OURS)
        if other not in used and (not known or (pair.part.kind, other) == OTHER_COUNT):
            raise ValueError(
                f"optax's {show_path(pair.part.path)}.{other} has no place in "
                f"{'.'.join(pair.names)}."
            )


def carried(source: PyTree, target: PyTree, where: str, nothing: Any = None) -> PyTree:
    """The values of one tree in the form of another: its nodes, its dtypes and where it lies.

    Leaves that were left out of one are None there, `MaskedNode`, or of the shape `nothing`.
    """
    values = jax.tree.leaves(source, is_leaf=_is_left_out)
    old, treedef = jax.tree.flatten(target, is_leaf=_is_left_out)
    if len(values) != len(old):
        raise ValueError(
            f"{where} has {len(values)} arrays, where {len(old)} are wanted: are the states of the "
            "same params?"
        )
    return treedef.unflatten(
        _carried(x, y, where, nothing) for x, y in zip(values, old, strict=True)
    )


def _carried(x: Any, old: Any, where: str, nothing: Any) -> Any:
    if _is_left_out(old) and (_is_left_out(x) or jnp.shape(x) == nothing):
        return old
    if _is_left_out(x) and jnp.shape(old) == nothing:
        return old
    if _is_left_out(x) or _is_left_out(old):
        raise ValueError(f"{where}: a leaf is masked in one state and not in the other.")
    if jnp.shape(x) != jnp.shape(old):
        raise ValueError(
            f"{where} has the shape {jnp.shape(x)}, where {jnp.shape(old)} is wanted: are the "
            "states of the same params?"
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(old):
        x = jnp.real(x)
    # A copy, since either state may be donated.
    return put_like(jnp.array(x, old.dtype), old)


def _is_left_out(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _fields(pair: Pair) -> list[tuple[str, Any, str]]:
    """The name, the value and optax's name of the slots that have one; an error on others."""
    stage, fields = type(pair.stage).__name__, getattr(pair.part.state, "_fields", ())
    found = []
    for name, slot in children(pair.slots):
        if _is_inner(name, slot) or isinstance(pair.slots, State):
            continue
        others = [] if name in RENEWED else [name, *_names_in_optax(stage, name)]
        other = next((x for x in others if x in fields), None)
        if other is not None:
            found.append((name, slot, other))
        elif jax.tree.leaves(slot) and name not in RENEWED and (stage, name) not in COMPUTED:
            raise ValueError(
                f"optax's {show_path(pair.part.path)}, a {pair.part.kind}, has nothing for "
                f"{'.'.join(pair.names)}.{name}."
            )
    return found


def _names_in_optax(stage: str, name: str) -> list[str]:
    return [*optax_names_of(stage, name), *filter(None, [OTHERS.get(stage, {}).get(name)])]


def _is_inner(name: str, slot: Any) -> bool:
    return isinstance(slot, State) or name in ("inner", "estimator")


def _rooted(pair: Pair, other: str, value: Any, function: Callable[..., Any]) -> Any:
    is_square = other in SQUARES or f"{other} of {type(pair.stage).__name__}" in SQUARES
    return jax.tree.map(function, value) if is_square else value


def _average(old: PyTree, found: dict[str, Any], params: PyTree) -> PyTree:
    """x of Schedule-Free, where it is kept: y = b1 * x + (1 - b1) * z."""
    share = found["share"]

    def average(x, y, z):
        return None if x is None else (y - (1 - share) * z) / share

    return jax.tree.map(average, old, params, found["z"], is_leaf=lambda x: x is None)


def _lbfgs_from(pair: Pair) -> dict[str, Any]:
    """The memory with the newest pair in the last row, and the inverse of its triangle."""
    other, own = pair.part.state, pair.slots
    where = show_path(pair.part.path)
    m, most = len(own.inverse), len(other.weights_memory)
    _check_same_memory(pair, most)
    order = (other.count - 1 - m + jnp.arange(m)) % most  # of the newest
    # optax keeps pairs along which the function curves downward too.
    kept = jnp.asarray(other.weights_memory)[order] > 0

    def rows(tree: PyTree, like: PyTree, name: str) -> PyTree:
        own_order = jax.tree.map(
            lambda x: jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x[order], 0), tree
        )
        return carried(own_order, like, f"{where}.{name}")

    steps = rows(other.diff_params_memory, own.steps, "diff_params_memory")
    changes = rows(other.diff_updates_memory, own.changes, "diff_updates_memory")
    products = _products(steps, changes)
    both = kept[:, None] & kept[None, :]
    triangle = jnp.where(both, jnp.triu(products), jnp.eye(m))
    square = jnp.where(kept[-1], _products(changes, changes)[-1, -1], 1)
    return {
        "params": carried(other.params, own.params, f"{where}.params"),
        "gradient": carried(other.updates, own.gradient, f"{where}.updates"),
        "steps": steps,
        "changes": changes,
        "inverse": carried(jnp.where(both, jnp.linalg.inv(triangle), 0), own.inverse, where),
        "scale": carried(
            jnp.where(kept[-1], products[-1, -1] / square, 0),
            own.scale,
            where,
        ),
        "row": carried(jnp.where(other.count > 0, 0, -1), own.row, where),
    }


def _lbfgs_to(pair: Pair, count: Any) -> dict[str, Any]:
    """optax writes the pair that an update finds into the row before that of its count."""
    other, own = pair.part.state, pair.slots
    where, m, most = ".".join(pair.names), len(own.inverse), len(other.weights_memory)
    _check_same_memory(pair, most)
    age = (count - 2 - jnp.arange(most)) % most  # of the pair in each row of optax's
    order = (own.row - 1 - age) % m
    weights = jnp.where(age < m, jnp.diagonal(own.inverse)[order], 0)

    def rows(tree: PyTree, like: PyTree, name: str) -> PyTree:
        kept = jax.tree.map(
            lambda x: jnp.where((weights != 0).reshape(-1, *[1] * (x.ndim - 1)), x[order], 0), tree
        )
        return carried(kept, like, f"{where}.{name}")

    return {
        "params": carried(own.params, other.params, f"{where}.params"),
        "updates": carried(own.gradient, other.updates, f"{where}.gradient"),
        "diff_params_memory": rows(own.steps, other.diff_params_memory, "steps"),
        "diff_updates_memory": rows(own.changes, other.diff_updates_memory, "changes"),
        "weights_memory": carried(weights, other.weights_memory, f"{where}.inverse"),
    }


def _check_same_memory(pair: Pair, theirs: int) -> None:
    """Refuses memories of other sizes. (That of few params has fewer rows here than in optax.)"""
    ours = cast(scale_by_lbfgs, pair.stage).memory_size
    if ours != theirs:
        raise ValueError(
            f"optax's {show_path(pair.part.path)} remembers {theirs} pairs, "
            f"{'.'.join(pair.names)} {ours}."
        )


def _products(rows: PyTree, others: PyTree) -> jax.Array:
    """The real inner products of all rows of one tree with all of another."""

    def products(x, y):
        x, y = (a.reshape(len(a), -1) for a in (x, y))
        return jnp.real(jnp.matmul(x.conj(), y.T, precision="highest"))

    both = zip(*map(jax.tree.leaves, (rows, others)), strict=True)
    return reduce(add, (products(x, y) for x, y in both))


def _accumulate_from(pair: Pair) -> dict[str, Any]:
    """optax keeps the mean of the gradients up to now, or their sum."""
    other, own = pair.part.state, pair.slots
    where = f"{show_path(pair.part.path)}"
    if jax.tree.leaves(other.skip_state):
        raise ValueError(f"{where}.skip_state has no place in {'.'.join(pair.names)}.")
    count = other.mini_step
    times = count if cast(accumulate, pair.stage).use_grad_mean else 1
    total = jax.tree.map(lambda x: x * times, other.acc_grads)
    return {
        "sum": carried(total, own.sum, f"{where}.acc_grads"),
        "weight": carried(count, own.weight, where),
        "micro_step": carried(count, own.micro_step, where),
        "has_updated": carried((count == 0) & (other.gradient_step > 0), own.has_updated, where),
    }


def _accumulate_to(pair: Pair, count: Any) -> dict[str, Any]:
    other, own = pair.part.state, pair.slots
    where = ".".join(pair.names)
    weight = own.weight if cast(accumulate, pair.stage).use_grad_mean else 1
    empty = own.micro_step == 0

    def mean(x):
        return jnp.where(empty, 0, x / jnp.where(empty, 1, weight))

    return {
        "acc_grads": carried(jax.tree.map(mean, own.sum), other.acc_grads, f"{where}.sum"),
        "mini_step": carried(own.micro_step, other.mini_step, where),
    }


class Special(NamedTuple):
    """A state of another form: its kind, and how it is read and written."""

    kind: str
    read: Callable[[Pair], dict[str, Any]]
    write: Callable[[Pair, Any], dict[str, Any]]


SPECIAL = {
    "scale_by_lbfgs": Special("ScaleByLBFGSState", _lbfgs_from, _lbfgs_to),
    "accumulate": Special("MultiStepsState", _accumulate_from, _accumulate_to),
}


def _special(pair: Pair) -> Special | None:
    """How the state of this stage is read, if not by names; an error if it is another rule's."""
    stage, part = type(pair.stage).__name__, pair.part
    special = SPECIAL.get(stage)
    rules = stages_of(part.kind)
    is_another = bool(rules) and stage not in rules and _is_in_optax(stage)
    if is_another or (special is not None and part.kind != special.kind):
        of = f" of {' or '.join(sorted(rules))}" if rules else ""
        raise ValueError(
            f"optax's {show_path(part.path)} is a {part.kind}{of}, not of {'.'.join(pair.names)}."
        )
    return special


def stages_of(kind: str) -> set[str]:
    """optax's stages whose state is of this type, as far as a call without arguments shows it."""
    return {name for name, own in _kinds().items() if own == kind}


def _is_in_optax(stage: str) -> bool:
    return stage in _kinds()


@cache
def _kinds() -> dict[str, str]:
    """The type of the state of each stage of optax that needs no arguments."""
    found = {}
    for module in (optax, optax.contrib):
        for name in dir(module):
            if name.startswith("scale_by_"):
                try:
                    tx = getattr(module, name)()
                    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((2,), jnp.float32))
                except Exception:  # it needs more, and is not compared
                    continue
                found[name] = type(state).__name__
    return found
