"""One optimizer after the other on one state: what population-based training finds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.data import child, numbers
from optfn.core.transform import Context, Transform
from optfn.core.tree import PyTree

Line = Sequence[tuple[int, Mapping[str, Any]]]


class in_turn(Transform):
    """Optimizers of one structure, each for a part of the run, on one state.

        in_turn(optfn.stack([optfn.adam(0.1), optfn.adam(0.01)]), boundaries=(100,))

    What a member of `pbt` was trained by: the numbers change from one step of training to the next,
    and the state goes on. They may be anything the optimizers have, also arguments of a schedule,
    or numbers inside a wrapper that counts steps of its own, where a schedule could not follow.

    At step t the i-th optimizer makes the update, where i is the number of boundaries up to t. Its
    schedules are read at t, as if it had been there from the start. The state is the optimizer's
    own.

    Args:
        optimizer: all n as one, each number of which has theirs in front, as by `stack`.
        boundaries: n - 1 steps, ascending: the first of each optimizer but the first.

    Raises:
        ValueError: a number of the optimizer does not have n values in front.

    Source: Jaderberg et al. 2017, "Population Based Training of Neural Networks".
    """

    optimizer: Transform = child()
    boundaries: Sequence[Any] = numbers()

    def __post_init__(self):
        super().__post_init__()
        count = len(self.boundaries) + 1
        for path, x in jax.tree_util.tree_flatten_with_path(self.optimizer)[0]:
            if jnp.shape(x)[:1] != (count,):
                raise ValueError(
                    f"in_turn(optimizer=...) must have the numbers of {count} optimizers, one more "
                    f"than the boundaries, in front; found the shape {jnp.shape(x)} at "
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')}."
                )

    @property
    def name(self) -> str | None:
        return self._given_name

    @property
    def stateful(self) -> bool:
        return self.optimizer.stateful

    def resolve(self, step: Any) -> "in_turn":
        """With the one optimizer whose turn it is."""
        turn = sum((step >= boundary for boundary in self.boundaries), jnp.int32(0))
        one = jax.tree.map(lambda x: jnp.asarray(x)[turn], self.optimizer)
        return self.rebuilt(optimizer=one, boundaries=())

    def init_slots(self, params: PyTree) -> dict[str, Any] | None:
        return self.resolve(0).optimizer.init_named(params) or None

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        updates, slots = self.optimizer.apply_named(updates, slots or {}, ctx)
        return updates, slots or None

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        last = self.resolve(step - 1).optimizer  # that of the update that led to these params
        return last.evaluation_params_named(params, slots or {}, step)

    def _repr_name(self) -> str:
        return "sweep.in_turn"


def of_line(make: Callable[..., Transform], line: Line, length: int | None = None) -> Transform:
    """The optimizer that goes from point to point.

    Args:
        make: the optimizer of a point.
        line: pairs of a step and the point from there on, the first of step 0.
        length: of the line, the last point repeated; lines of one length have one structure.
    """
    line = [*line, *[line[-1]] * ((length or 0) - len(line))]
    if len(line) == 1:
        return make(**line[0][1])

    def together(*values: Any) -> Any:
        if jnp.issubdtype(getattr(values[0], "dtype", float), jax.dtypes.prng_key):
            return jnp.stack(values)
        dtype = getattr(values[0], "dtype", jnp.result_type(float))
        return np.stack([np.asarray(x, dtype) for x in values])

    transforms = [make(**point) for _, point in line]
    return in_turn(jax.tree.map(together, *transforms), [step for step, _ in line[1:]])
