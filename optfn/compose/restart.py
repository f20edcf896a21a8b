"""Restarting a part of an optimizer in the middle of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optfn.core.data import child
from optfn.core.slot_paths import param_of
from optfn.core.slots import zero_slot
from optfn.core.state import Context, State
from optfn.core.transform import Transform, as_transform, check_transform_type, readable_state
from optfn.core.tree import PyTree, bare, in_form_of, leaf_paths
from optfn.core.walk import Place, renew_slots, walk


class own_step(Transform):
    """Runs a transform with its own step count, which starts at 0 at `init` and `reset`.

    For a group of a partition that `reset` should restart from scratch: its schedules and bias
    corrections then restart too. Without it a group's step is the whole optimizer's.

    Args:
        transform: a stage or a whole optimizer.
    """

    elementwise = True

    transform: Transform = child(converter=as_transform)

    def init_slots(self, params: PyTree) -> State:
        step = zero_slot(jnp.int32, params)
        return State(step, self.transform.init_named(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        own = ctx._replace(step=slots.step)
        updates, new = self.transform.apply_named(updates, slots.slots, own)
        return updates, State(own.next_step, new)


def reset(
    tx: optax.GradientTransformation, state: optax.OptState, params: PyTree, name: str
) -> State:
    """The state with one group or stage re-initialized, and the rest unchanged.

        state = reset(tx, state, params, "head")

    For a head that was replaced, also by one of another size, or for moments that went bad. (To
    reset all of the state, call `tx.init(params)`.) Resetting a group also resets the slots of its
    leaves in the wrappers around it: an average of the params and the slow params of `lookahead`
    become the new head, and its sum in `accumulate` becomes zero. The other groups' sums continue,
    and all groups share one count, so in the middle of a round the earlier gradients count as zeros
    for the new head: reset it when `has_updated` is True. Resetting a stage resets its own slots
    only.

    The step continues, except inside a wrapper with its own count: `own_step`, `accumulate`,
    `skip_nonfinite`. So schedules continue too, and Adam does not correct the bias of its new
    moments: with b1 = 0.9 and b2 = 0.999 the next steps are up to 6.6 times too long. Make
    the group `own_step(adam(...))` to avoid this.

    Args:
        tx: an optimizer.
        state: its state.
        params: the current params.
        name: the label of a group, or the name of a stage, as in `hyperparameters`: `"head"`,
            or, where several end so, `"head.scale_by_adam"`. A label is given whole.

    Raises:
        ValueError: the name is unknown or ambiguous; the state is another optimizer's; or a slot
            that is not reset does not fit the shapes of the params.
    """
    tx = check_transform_type(tx, "reset(tx, state, params, name): tx")
    given, state, params = state, readable_state(state), bare(params)
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
    return in_form_of(state, given)


def _with_leaves_of(new: Any, old: Any, every: dict[Any, Any], own: dict[Any, Any]) -> Any:
    """The old slots, with new leaves where they belong to the group's `own` params of `every`."""
    by_path, treedef = jax.tree_util.tree_flatten_with_path(new)
    belongs = [param_of(path, slot, every) in own for path, slot in by_path]
    if not any(belongs):
        return old
    leaves = zip(belongs, jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return treedef.unflatten([fresh if mine else kept for mine, fresh, kept in leaves])


def _find(name: str, places: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of the one place that equals `name` or ends with it."""
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
