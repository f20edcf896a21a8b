"""A warning where a learning rate is too small for the params to move."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optfn.core.dtypes import is_narrow
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.schedule import has_schedule
from optfn.core.tree import PyTree, leaf_paths
from optfn.core.updates_kind import Part, makes_steps

Seen = tuple[tuple[str, ...], Part, PyTree]


def warn_of_small_rates(params: PyTree, stages: Callable[[], Iterable[Seen]]) -> None:
    """Warns once of the first constant rate that is below what the dtype of its params can show.

    An entry of 1 of b binary digits does not move by less than 2^-(b + 1).

    Args:
        params: all params; if none of them is narrow, nothing else is looked at.
        stages: the names, the stage and the params of every stage; traced params are not looked at.
    """
    if not any(_least_step(p.dtype) for p in jax.tree.leaves(params)):
        return
    for names, stage, params in stages():
        given = getattr(stage, "learning_rate", None)
        if not makes_steps(stage):
            continue
        narrow = [
            (path, p.dtype, rate)
            for path, p in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
            if not isinstance(p, Tracer) and isinstance(rate := _constant(given, path), float)
            if 0 < abs(rate) < _least_step(p.dtype)
        ]
        if narrow:
            (path, dtype, rate), others = narrow[0], len(narrow) - 1
            warnings.warn(
                f"{'.'.join(names)}.learning_rate is {rate:g}, but an entry of 1 in {dtype.name} "
                f"does not move by steps below {_least_step(dtype):.2g}: the params '{path}'"
                f"{f' and {others} more' if others else ''} may stand still. Wrap the optimizer in "
                "master(...) or compensated(...), or take the steps by "
                "step(..., rounding='stochastic'), where this warning may be ignored.",
                stacklevel=3,
            )
            return


def _constant(given: Any, path: str) -> Any:
    """A float where the rate of a leaf does not change."""
    if isinstance(given, NumberByPath):
        return None if has_schedule(given) else given.at_path(path)
    return given


def _least_step(dtype: Any) -> float:
    """What an entry of 1 in a dtype of fewer than 32 bits needs to move; 0 for other dtypes."""
    return float(jnp.finfo(dtype).eps) / 4 if is_narrow(dtype) else 0.0
