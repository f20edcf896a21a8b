"""A part of an optimizer started anew in the middle of a run."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import child
from optfn.core.parts import parts
from optfn.core.placement import beside
from optfn.core.transform import Context, State, Transform, check_state_type, check_transform_type
from optfn.core.tree import PyTree


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
        step = beside(jnp.zeros((), jnp.int32), jax.tree.leaves(params))
        return State(step, self.transform.init_named(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        own = ctx._replace(step=slots.step)
        updates, new = self.transform.apply_named(updates, slots.slots, own)
        return updates, State(own.next_step, new)


def reset(tx: Transform, state: State, params: PyTree, name: str) -> State:
    """The state with one group or stage in it as `init` makes it, and the rest as it is.

        state = reset(tx, state, params, "head")

    For a head that was exchanged, also by one of another size, or moments that went bad. All of the
    state starts anew with `tx.init(params)`. What a wrapper outside of the group keeps of its
    leaves stays: the average of `ema_of_params`, the slow params of `lookahead`, the sum of
    `accumulate`. Begin these anew when leaves are exchanged.

    The step goes on, except inside what counts for itself: `own_step`, `accumulate`,
    `skip_nonfinite`. So schedules go on too, and Adam takes new moments for old ones that need no
    correction: with its usual numbers, steps of up to 6.6 times the length follow. Make the group
    `own_step(adam(...))` to have them right.

    Args:
        tx: an optimizer.
        state: its state.
        params: the current params.
        name: the label of a group, or the name of a stage, as in `hyperparameters`: `"head"`,
            or, where several end so, `"head.scale_by_adam"`.

    Raises:
        ValueError: no such name, an ambiguous one, or the state of another optimizer.
    """
    check_transform_type(tx, "reset(tx, state, params, name): tx")
    check_state_type(state)
    fresh = tx.init(params)
    leaves, treedef = jax.tree.flatten(state)
    if jax.tree.structure(fresh) != treedef:
        raise ValueError(
            "reset(tx, state, params, name): the state is not one of this optimizer and params."
        )
    # The leaves of this state are their own places.
    places = treedef.unflatten(range(treedef.num_leaves))
    slots = {part: own for part, _, own in parts(tx, places.slots, places.step)}
    found = [name] if name in slots else [x for x in slots if x.endswith(f".{name}")]
    if not found:
        raise ValueError(
            f"reset(tx, state, params, name): {name!r} is no group or stage with a state; there "
            f"are: {', '.join(slots) or 'none'}."
        )
    if len(found) > 1:
        raise ValueError(
            f"reset(tx, state, params, name): {name!r} is ambiguous; say which: {', '.join(found)}."
        )
    anew = set(jax.tree.leaves(slots[found[0]]))
    pairs = enumerate(zip(leaves, jax.tree.leaves(fresh), strict=True))
    return treedef.unflatten([new if i in anew else old for i, (old, new) in pairs])
