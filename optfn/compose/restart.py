"""A part of an optimizer started anew in the middle of a run."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import child
from optfn.core.slots import zero_slot
from optfn.core.transform import (
    Context,
    State,
    Transform,
    check_state_type,
    check_transform_type,
    param_of,
)
from optfn.core.tree import PyTree, leaf_paths
from optfn.core.walk import Place, renew_slots, walk


class own_step(Transform):
    """Runs a transform by a step of its own, which starts at 0 wherever the others are.

    For a group of a partition that `reset` is to start anew as if training began: its schedules and
    bias corrections then begin again too. Without it a group's step is the whole optimizer's.

    Args:
        transform: a stage or a whole optimizer.
    """

    elementwise = True

    transform: Transform = child()

    def init_slots(self, params: PyTree) -> State:
        step = zero_slot(jnp.int32, params)
        return State(step, self.transform.init_named(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        own = ctx._replace(step=slots.step)
        updates, new = self.transform.apply_named(updates, slots.slots, own)
        return updates, State(own.next_step, new)


def reset(tx: Transform, state: State, params: PyTree, name: str) -> State:
    """The state with one group or stage in it as `init` makes it, and the rest as it is.

        state = reset(tx, state, params, "head")

    For a head that was exchanged, also by one of another size, or moments that went bad. All of the
    state starts anew with `tx.init(params)`. With a group goes what stands outside of it but has
    the shape of its leaves, as if they had always been what they are now: an average of the params
    and the slow ones of `lookahead` are the new head, and what `accumulate` has summed up for it is
    zero. The sum of the other groups goes on and all have one count, so that in the middle of a
    round the next step of the new head is with zeros for the gradients before: reset it when
    `has_updated` is True, and there are none. The name of a stage is for its own slots alone.

    The step goes on, except inside what counts for itself: `own_step`, `accumulate`,
    `skip_nonfinite`. So schedules go on too, and Adam takes new moments for old ones that need no
    correction: with its usual numbers, steps of up to 6.6 times the length follow. Make the group
    `own_step(adam(...))` to have them right.

    Args:
        tx: an optimizer.
        state: its state.
        params: the current params.
        name: the label of a group, or the name of a stage, as in `hyperparameters`: `"head"`,
            or, where several end so, `"head.scale_by_adam"`. A label is given whole.

    Raises:
        ValueError: no such name, an ambiguous one, or the state of another optimizer; or a slot
            that stays has not the shape that these params want, by its path.
    """
    check_transform_type(tx, "reset(tx, state, params, name): tx")
    check_state_type(state)
    fresh = tx.init(params)
    if jax.tree.structure(fresh) != jax.tree.structure(state):
        raise ValueError(
            "reset(tx, state, params, name): the state is not one of this optimizer and params."
        )
    begun = {place.names: place for place in walk(tx, fresh.slots, fresh.step, params)}
    chosen = begun[_find(name, list(begun))]
    shapes = jax.eval_shape(lambda p: (p, chosen.params if chosen.stage is None else ()), params)
    every, own = (dict(jax.tree_util.tree_flatten_with_path(x)[0]) for x in shapes)

    def renew(place: Place) -> Any:
        new = begun[place.names].slots
        return new if place.names == chosen.names else _with_leaves_of(new, place.slots, every, own)

    slots = renew_slots(tx, state.slots, state.step, params, renew)
    state = State(state.step, slots)
    leaves, first = jax.tree.leaves(state), jax.tree.leaves(fresh)
    for path, old, new in zip(leaf_paths(state), leaves, first, strict=True):
        if old.shape != new.shape:
            raise ValueError(
                f"reset(tx, state, params, name): {name!r} leaves the state's '{path}' as it is, "
                f"of shape {old.shape}, and the params want {new.shape}."
            )
    return state


def _with_leaves_of(new: Any, old: Any, every: dict, own: dict) -> Any:
    """The old slots with the new leaves that belong to a group's `own` params of `every`."""
    by_path, treedef = jax.tree_util.tree_flatten_with_path(new)
    belongs = [param_of(path, slot, every) in own for path, slot in by_path]
    if not any(belongs):
        return old
    leaves = zip(belongs, jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return treedef.unflatten([fresh if mine else kept for mine, fresh, kept in leaves])


def _find(name: str, places: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of the one place that `name` is, or is the end of."""
    named = {".".join(names): names for names in places}
    found = [name] if name in named else [x for x in named if name in _endings(named[x])]
    if not found:
        raise ValueError(
            f"reset(tx, state, params, name): {name!r} is no group or stage with a state; there "
            f"are: {', '.join(named) or 'none'}."
        )
    if len(found) > 1:
        raise ValueError(
            f"reset(tx, state, params, name): {name!r} is ambiguous; say which: {', '.join(found)}."
        )
    return named[found[0]]


def _endings(names: tuple[str, ...]) -> set[str]:
    return {".".join(names[i:]) for i in range(len(names))}
