"""Moving a run between optax and optfn: the state of one as that of the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optfn.core.state import State
from optfn.core.transform import Transform, check_state_type, check_transform_type
from optfn.core.tree import PyTree
from optfn.core.walk import Place, renew_slots
from optfn.interop.optax_slots import carried, fields_from, slots_from
from optfn.interop.optax_stages import (
    FIRST,
    INNER,
    KEYS,
    NONE_YET,
    ROUND,
    Pair,
    Part,
    Path,
    children,
    counts_in,
    pairs,
    replaced,
    show_path,
)


def from_optax_state(
    tx: optax.GradientTransformation,
    optax_state: optax.OptState,
    params: PyTree,
    *,
    count: int | None = None,
) -> State:
    """The state with which an optimizer of optfn goes on where optax's stopped.

        tx = optfn.adamw(schedule)                     # for optax.adamw(schedule)
        state = optfn.from_optax_state(tx, optax_state, params)

    The stages and wrappers must be those of optax's optimizer, in its order. Chains, masks, groups
    and `inject_hyperparams` are looked through; hyperparameters stay those of `tx`.

    Args:
        tx: the optimizer to go on with.
        optax_state: the state after the last update of optax's.
        params: the params after it.
        count: the number of updates made, where optax keeps no count: for schedules that optax's
            optimizer had not. None finds it in the state, and is 0 where there is none.

    Raises:
        ValueError: a part of optax's state has no place, a stage finds nothing in it, or counts
            differ; the message names the part and the stage. What optax draws from a key that its
            state keeps has no place, since random numbers come from a seed here.
    """
    tx = check_transform_type(tx, "from_optax_state(tx=...)")
    first = tx.init(params)
    found = pairs(tx, first, optax_state, params)
    _check_no_keys(optax_state)
    steps = _Steps(found, optax_state)
    step = steps.of(None, _least_count(found) if count is None else count)
    if count is not None and not isinstance(step, Tracer) and step != count:
        raise ValueError(
            f"from_optax_state(count=...) is {count}, but optax's state counts {step} updates."
        )
    new = {pair.names: slots_from(pair, params) for pair in found}

    def renewed(place: Place) -> Any:
        slots = place.slots
        if place.names not in new:
            return slots._replace(count=step) if isinstance(slots, State) else slots
        paths = steps.holders.get(place.names, [])
        if isinstance(slots, State):
            return slots._replace(count=steps.of(paths[0], step))
        held = [name for name, x in children(slots) if isinstance(x, State)]
        inner = {
            name: getattr(slots, name)._replace(count=steps.of(path, step))
            for name, path in zip(held, paths, strict=True)
        }
        return slots._replace(**new[place.names], **inner)

    slots = renew_slots(tx, first.slots, first.step, params, renewed)
    return State(carried(step, first.step, "count"), slots)


def to_optax_state(
    tx: optax.GradientTransformation,
    state: State,
    optax_tx: optax.GradientTransformation,
    params: PyTree,
) -> optax.OptState:
    """The state with which an optimizer of optax goes on where optfn's stopped.

    The inverse of `from_optax_state`.

    Args:
        tx: the optimizer that made the state.
        state: the state after its last update.
        optax_tx: optax's, to go on with.
        params: the params after the last update.

    Raises:
        ValueError: as for `from_optax_state`.
    """
    tx = check_transform_type(tx, "to_optax_state(tx=...)")
    state = check_state_type(state)
    if isinstance(optax_tx, Transform) or not hasattr(optax_tx, "init"):
        raise TypeError(
            "to_optax_state(optax_tx=...) must be an optax transformation, found "
            f"{type(optax_tx).__name__}."
        )
    first = optax_tx.init(params)
    found = pairs(tx, state, first, params)
    _check_no_keys(first)
    steps = _Steps(found, first)
    new: dict[Path, Any] = {}
    for pair in found:
        own = steps.owner((*pair.part.path, "count"))
        made = state.step if own is None else steps.kept(own)
        for name, value in fields_from(pair, made).items():
            new[*pair.part.path, name] = value
    for path, old in counts_in(first):
        own = steps.owner(path)
        count = state.step if own is None else steps.kept(own)
        new[path] = carried(count + FIRST.get(path[-1], 0), old, show_path(path))
    for pair in found:
        for name, old in children(pair.part.state):
            if name in NONE_YET:
                new[*pair.part.path, name] = carried(state.step == 0, old, name)
            if name == ROUND:
                length = getattr(pair.stage, "sync_period", 1)
                new[*pair.part.path, name] = carried(state.step % length, old, name)
    return replaced(first, new)


class _Steps:
    """The counts in optax's state, and the inner `State` or the root to which each belongs."""

    def __init__(self, found: list[Pair], optax_state: Any):
        self.holders: dict[tuple[str, ...], list[Path]] = {}
        self.states: dict[Path, State] = {}
        for pair in found:
            held = [pair.slots] if isinstance(pair.slots, State) else list(pair.slots)
            held = [x for x in held if isinstance(x, State)]
            inner = [key for key, _ in children(pair.part.state) if key in INNER]
            if held:
                paths = [(*pair.part.path, key) for key in inner]
                self.holders[pair.names] = paths
                self.states |= dict(zip(paths, held, strict=True))
        self.counts = list(counts_in(optax_state))

    def owner(self, path: Path) -> Path | None:
        """The path of the inner state to which a count belongs; None for the root's."""
        if path[-1] == "gradient_step":
            return next((p for p in self.states if p[:-1] == path[:-1]), None)
        inside = [own for own in self.states if path[: len(own)] == own]
        return max(inside, key=len, default=None)

    def kept(self, own: Path) -> Any:
        return self.states[own].step

    def of(self, own: Path | None, default: Any) -> Any:
        """The number of updates of an inner state or of the root."""
        counts = [part for part in self.counts if self.owner(part.path) == own]
        for other in counts[1:]:
            _check_equal(counts[0], other)
        return jnp.asarray(counts[0].state if counts else default, jnp.int32)


def _least_count(found: list[Pair]) -> Any:
    """What parts without a count say of the number of updates, or 0.

    Either whether there was one, or the number in a round: of no others do the stages ask.
    """
    for pair in found:
        for name, x in children(pair.part.state):
            if name in NONE_YET:
                return 1 - jnp.asarray(x, jnp.int32)
            if name == ROUND:
                return x
    return 0


def _check_equal(a: Part, b: Part) -> None:
    known = not isinstance(a.state, Tracer) and not isinstance(b.state, Tracer)
    if known and np.any(np.asarray(a.state) != np.asarray(b.state)):
        raise ValueError(
            f"optax's {show_path(a.path)} counts {a.state} updates and {show_path(b.path)} "
            f"{b.state}; here one count is for all."
        )


def _check_no_keys(optax_state: Any, path: Path = ()) -> None:
    for key, inner in children(optax_state):
        if key in KEYS and jax.tree.leaves(inner):
            raise ValueError(
                f"optax's {show_path((*path, key))} has no place: here random numbers come from "
                "the stage's seed and the step."
            )
        _check_no_keys(inner, (*path, key))
