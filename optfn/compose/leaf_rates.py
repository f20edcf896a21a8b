"""A factor on the learning rate of each leaf."""

import math
from numbers import Real
from typing import Any

import jax

from optfn.compose.interop import from_optax
from optfn.compose.monitor import monitor
from optfn.core.data import per_leaf, static
from optfn.core.dtypes import cast, compute_dtype
from optfn.core.inputs import is_inexact
from optfn.core.leafwise import Leafwise
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree, leaf_location
from optfn.core.updates_kind import check_not_last
from optfn.core.wrapper import Wrapper


class with_leaf_rates(Wrapper):
    """Multiplies the learning rate of each leaf by a factor; by default its decay stays.

        p <- p + f * step(g, p / f)        decay="independent": f on the rate, none on the decay
        p <- p + f * step(g, p)            decay="tied": f on both, as the decay is times the rate

    Around any optimizer, with its groups, schedules and clips, which see the gradients unchanged:

        with_leaf_rates(adamw(1e-3, weight_decay=0.1), by_path({"head/**": 10.0}, default=1.0))

    `width_transfer` chooses factors by the width of a model.

    Args:
        transform: the optimizer.
        factors: a number above 0 for each leaf: a tree (a prefix is enough), a function
            `(path, leaf) -> number` or a function `params -> tree`.
        decay: "independent": the weight decay of a leaf, learning rate times decay, stays what the
            optimizer has; or "tied": it is multiplied too. The first needs to tell decay from
            direction, so it takes only optimizers whose params enter by a decay. Where that is an
            L2 penalty before a direction such as Adam's, which divides it by its size, there is no
            such product to keep: take "tied".

    Raises:
        TypeError: a factor is not a number.
        ValueError: a factor is not above 0; params enter otherwise than by a decay and `decay` is
            "independent"; or an average of params is inside, whose updates nothing may change.

    Source: the reparametrization p = f * p' of Yang and Hu 2021; Wang and Aitchison 2024 for the
    independent decay.
    """

    elementwise = True

    factors: Any = per_leaf(of=Real)
    decay: str = static(default="independent", choices=("independent", "tied"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors is None:
            raise TypeError(
                "with_leaf_rates(factors=...) must be a tree or a function, found None."
            )
        check_not_last(self.transform, "with_leaf_rates(transform=...)", "with_leaf_rates")
        reading = None if self.decay == "tied" else _reads_params(self.transform)
        if reading is not None:
            raise ValueError(
                f"with_leaf_rates(transform=...): the params may enter {reading.name} otherwise "
                "than by a decay, so its decay cannot be told from its direction: put "
                f'{reading.name} around with_leaf_rates, or say decay="tied".'
            )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        factors = self._factors(updates if ctx.params is None else ctx.params)
        if self.decay == "independent" and ctx.params is not None:
            ctx = ctx._replace(params=_over(factors, ctx.params))
        updates, slots = self.transform.apply_named(updates, slots, ctx)
        return _times(factors, updates), slots

    def init_slots(self, params: PyTree) -> Any:
        self._factors(params)
        return super().init_slots(params)

    def _factors(self, tree: PyTree) -> list[float]:
        factors = [float(factor) for factor in self.factors.values(tree)]
        for i, factor in enumerate(factors):
            if not 0 < factor < math.inf:
                raise ValueError(
                    f"with_leaf_rates(factors=...) {leaf_location(tree, i)} must be a number above "
                    f"0, found {factor:g}."
                )
        return factors


def _times(factors: list[float], tree: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(factors, leaves, strict=True)
    return treedef.unflatten([x if f == 1 or not is_inexact(x) else x * f for f, x in pairs])


def _over(factors: list[float], params: PyTree) -> PyTree:
    """In the compute dtype, as 16 bits would round what a small factor leaves, or overflow."""
    leaves, treedef = jax.tree.flatten(params)
    wide = [
        x if f == 1 or not is_inexact(x) else cast(x, compute_dtype(x.dtype))
        for f, x in zip(factors, leaves, strict=True)
    ]
    return _times([1 / f for f in factors], treedef.unflatten(wide))


def _reads_params(tx: Transform) -> Transform | None:
    """The first part whose updates depend on the params, other than by a decay."""
    of_params = {"function", "tree function"} & set(tx.extra_args.values())
    measures = isinstance(tx, monitor) and tx.metrics
    reads = tx.needs_params or of_params or measures or isinstance(tx, from_optax)
    if reads and not (isinstance(tx, Leafwise) and tx.decays_params):
        return tx
    return next((found for part in tx.contents if (found := _reads_params(part))), None)
