"""Optimizers one after the other, as population-based training finds them."""

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
    """Optimizers of one structure on one state, each from a step of the training on.

    What `sweep.run` finds under `pbt`: a schedule of all hyperparameters at once. The state is that
    of one of them. Steps are the training's, also where an optimizer inside counts its own.

    Args:
        transform: the optimizers as one, each number an array with theirs in front.
        boundaries: the steps from which the second, the third ... goes on, ascending.
    """

    transform: Transform = child()
    boundaries: Sequence[Any] = numbers()

    @property
    def name(self) -> str | None:
        return self._given_name

    @property
    def stateful(self) -> bool:
        return self.transform.stateful

    def standing(self, step: Any) -> Transform:
        place = sum(jnp.where(step >= boundary, 1, 0) for boundary in self.boundaries)
        return jax.tree.map(lambda x: jnp.asarray(x)[place], self.transform)

    def init_slots(self, params: PyTree) -> Any:
        return self.standing(0).init_named(params)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        return self.standing(ctx.step).apply_named(updates, slots, ctx)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        return self.standing(step).evaluation_params_named(params, slots, step)


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
