"""One optimizer after the other on one state, as population-based training finds them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import child, numbers
from optfn.core.hyperparameters import stack_values
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree

History = Sequence[tuple[int, Mapping[str, Any]]]


class join_optimizers(Transform):
    """Optimizers of one structure, each for a part of the run, on one state.

        join_optimizers(optfn.stack([optfn.adam(0.1), optfn.adam(0.01)]), boundaries=(100,))

    The optimizer of a `pbt` member: its hyperparameters change at the boundaries, and its state
    continues. Any number of the optimizers may change, also an argument of a schedule, or a number
    inside a wrapper that counts its own steps, where a schedule could not follow.

    At step t the i-th optimizer makes the update, where i is the number of boundaries up to t. Its
    schedules are read at t, as if it had trained from the start. The state is that of one
    optimizer.

    Args:
        optimizer: the n optimizers as one, with numbers `[n, ...]`, as `stack` gives them.
        boundaries: n - 1 steps, ascending: the first step of each optimizer but the first.

    Raises:
        ValueError: a number of the optimizer does not have the shape `[n, ...]`.

    Source: Jaderberg et al. 2017, "Population Based Training of Neural Networks".
    """

    optimizer: Transform = child()
    boundaries: Sequence[Any] = numbers()

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.boundaries) + 1
        for path, x in jax.tree_util.tree_flatten_with_path(self.optimizer)[0]:
            if jnp.shape(x)[:1] != (count,):
                raise ValueError(
                    f"join_optimizers(optimizer=...) must have the numbers of {count} optimizers, "
                    f"one more than the boundaries, in front; found the shape {jnp.shape(x)} at "
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')}."
                )

    @property
    def name(self) -> str | None:
        return self._given_name

    @property
    def stateful(self) -> bool:
        return self.optimizer.stateful

    def resolve(self, step: Any) -> "join_optimizers":
        """With only the optimizer of this step."""
        turn = sum((step >= boundary for boundary in self.boundaries), jnp.int32(0))
        one = jax.tree.map(lambda x: jnp.asarray(x)[turn], self.optimizer)
        return self.rebuilt(optimizer=one, boundaries=())

    def init_slots(self, params: PyTree) -> dict[str, Any]:
        return self.resolve(0).optimizer.init_named(params)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        return self.optimizer.apply_named(updates, slots, ctx)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        last = self.resolve(step - 1).optimizer  # the optimizer of the last update
        return last.evaluation_params_named(params, slots, step)

    def _repr_name(self) -> str:
        return "sweep.join_optimizers"


def optimizer_of_history(
    make: Callable[..., Transform], history: History, length: int | None = None
) -> Transform:
    """The optimizer that changes its point at the steps of a history.

    Args:
        make: a function of a point that returns its optimizer.
        history: pairs of a step and the point from that step on, the first at step 0.
        length: repeats the last point up to this length; histories of one length give optimizers of
            one structure. None repeats nothing.
    """
    history = [*history, *[history[-1]] * ((length or 0) - len(history))]
    if len(history) == 1:
        return make(history[0][1])

    many = jax.tree.map(stack_values, *(make(point) for _, point in history))
    return join_optimizers(many, [step for step, _ in history[1:]])
