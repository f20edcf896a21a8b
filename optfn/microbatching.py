"""Evaluates a function of a batch piece by piece, in the memory of one piece."""

import functools
import operator
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from optfn.core.control_flow import cond, scan
from optfn.core.data import check_count
from optfn.core.dtypes import cast, compute_dtype, real_dtype
from optfn.core.inputs import is_float0, to_arrays
from optfn.core.numerics import ratio
from optfn.core.signatures import parameters_of
from optfn.core.tree import PerLeaf, PyTree, leaf_paths, location

ACCUMULATORS = ("mean", "sum", "concat")


def microbatch(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    microbatch_size: int | None,
    accumulator: PyTree = "mean",
    *,
    argnames: str | Sequence[str] = (),
    in_axes: int | Sequence[int] = 0,
    num_real_microbatches: Any = None,
) -> Callable[..., Any]:
    """The same function, evaluated on one micro-batch after another within one call.

    A batch of n * m rows is split into n micro-batches of m rows, and `accumulator` combines their
    results. Where the gradient of a whole batch does not fit into memory, take the gradient inside:

        value_and_grad = microbatch(jax.value_and_grad(loss), argnums=1, microbatch_size=64)
        value, grads = value_and_grad(params, batch)

    Under `jax.jit` it is a loop of the program; outside of it, a Python loop. The gradient of a
    microbatched function, taken outside, is the same but stores the residuals of every micro-batch,
    unless the function is under `jax.checkpoint`.

    Floating point sums are in float32 or wider; results have the function's shapes and dtypes. They
    equal those of the whole batch up to rounding if rows are independent and `accumulator` fits:
    "mean" for a mean over the rows, "sum" for a sum, "concat" for one result per row. A mean over
    some of the rows, such as tokens that are not padding, is the ratio of two sums: return both.

    Micro-batch i has the rows i, i + n, i + 2n and so on, so each device of a sharded batch has its
    share of every micro-batch. With `num_real_microbatches`, which leaves out the last rows,
    micro-batches are consecutive rows; then the rows cannot be sharded over an explicit axis of a
    mesh, where JAX does not reshard implicitly.

    Args:
        fun: any function of arrays.
        argnums: the positions of the batch arguments: trees of arrays with equal numbers of rows.
        microbatch_size: the number of rows in a micro-batch, a divisor of the batch's; None returns
            `fun` itself.
        accumulator: "mean", "sum" or "concat", or optax's `AccumulationType`; or a tree of these,
            a prefix of the result of `fun`, as in `(("mean", "concat"), "mean")` for
            `((loss, logits), grads)`.
        argnames: the names of further batch arguments, which are passed by keyword.
        in_axes: the axis of the rows, one for all or one for each of `argnums` and `argnames`.
        num_real_microbatches: evaluates only this many micro-batches, from the first; it may be
            traced, for batches of varying size padded to one shape. A mean is over these, and 0 if
            there are none; in a concatenation the other rows are zeros. None evaluates all.

    Returns:
        A function with the arguments and results of `fun`.

    Raises:
        ValueError: the arguments do not fit each other or `fun`; or, from the returned function,
            the batches or results do not fit them.
        TypeError: from the returned function, a result has no mean or sum, or
            `num_real_microbatches` is not an integer.
    """
    if microbatch_size is None:
        return fun
    check_count(microbatch_size, "microbatch(microbatch_size=...)")
    keys = (*_as_tuple(argnums, int), *_as_tuple(argnames, str))
    axes = (in_axes,) * len(keys) if isinstance(in_axes, int) else tuple(in_axes)
    if not keys:
        raise ValueError("microbatch(...) needs the argnums or the argnames of a batch.")
    if len(axes) != len(keys):
        raise ValueError(
            f"microbatch(in_axes=...) has {len(axes)} axes for the {len(keys)} arguments that are "
            "batches; give one for each or one for all."
        )
    accumulator = jax.tree.map(_accumulator_name, accumulator)
    per_output = PerLeaf.of(accumulator, "microbatch(accumulator=...)", str)
    _check_choices(per_output.leaves)

    @functools.wraps(fun, updated=())
    def microbatched(*args: Any, **kwargs: Any) -> Any:
        batches = [_batch(fun, key, args, kwargs) for key in keys]
        rows = _number_of_rows(fun, keys, axes, batches)
        if not rows or rows % microbatch_size:
            raise ValueError(
                f"microbatch(microbatch_size={microbatch_size}): a batch of {rows} rows is not "
                "divisible by it."
            )
        split = _Split(rows // microbatch_size, microbatch_size, num_real_microbatches is None)

        def evaluate(i: jax.Array) -> Any:
            own, own_by_name = list(args), dict(kwargs)
            for key, axis, batch in zip(keys, axes, batches, strict=True):
                piece = jax.tree.map(lambda x, axis=axis: split.piece(x, i, axis), batch)
                if isinstance(key, str):
                    own_by_name[key] = piece
                else:
                    own[key] = piece
            return fun(*own, **own_by_name)

        numbers = jnp.arange(split.number, dtype=jnp.int32)
        if isinstance(numbers, Tracer):
            evaluate = jax.jit(evaluate)  # traced once for the shapes and the loop
        shapes = jax.eval_shape(evaluate, jax.ShapeDtypeStruct((), jnp.int32))
        like, treedef = jax.tree.flatten(shapes)
        kinds = per_output.values(shapes, "the results")
        _check_choices(kinds)
        # The gradient of an integer, float0, cannot be added up.
        kinds = [None if is_float0(x) else kind for kind, x in zip(kinds, like, strict=True)]
        for path, kind, x in zip(leaf_paths(shapes), kinds, like, strict=True):
            _check_result(path, kind, x, split.size)

        def add(sums: list, i: jax.Array) -> tuple[list, list]:
            new = jax.tree.leaves(evaluate(i))
            sums = [
                s if s is None else s + cast(x, s.dtype) for s, x in zip(sums, new, strict=True)
            ]
            return sums, [x if k == "concat" else None for k, x in zip(kinds, new, strict=True)]

        def hold(sums: list, i: jax.Array) -> tuple[list, list]:
            rows = zip(kinds, like, strict=True)
            return sums, [jnp.zeros_like(x) if k == "concat" else None for k, x in rows]

        real = _number_run(num_real_microbatches, split.number)
        body = add if split.spread else lambda sums, i: cond(i < real, add, hold, sums, i)
        start = [_zeros(kind, x) for kind, x in zip(kinds, like, strict=True)]
        sums, pieces = scan(body, start, numbers)

        def finished(kind: str | None, x: Any, sum: Any, pieces: Any) -> Any:
            if kind is None:
                return np.zeros(x.shape, jax.dtypes.float0)
            if kind == "concat":
                return split.joined(pieces)
            if kind == "mean":
                sum = ratio(sum, cast(real, real_dtype(sum.dtype)))
            return cast(sum, x.dtype)

        return treedef.unflatten(map(finished, kinds, like, sums, pieces))

    return microbatched


class _Split(NamedTuple):
    """A split of rows into `number` pieces of `size`, each strided (`spread`) or consecutive."""

    number: int
    size: int
    spread: bool

    def piece(self, x: jax.Array, i: jax.Array, axis: int) -> jax.Array:
        axis %= x.ndim
        rows = (self.size, self.number) if self.spread else (self.number, self.size)
        apart = x.reshape(*x.shape[:axis], *rows, *x.shape[axis + 1 :])
        return lax.dynamic_index_in_dim(apart, i, axis + self.spread, keepdims=False)

    def joined(self, pieces: jax.Array) -> jax.Array:
        in_order = pieces.swapaxes(0, 1) if self.spread else pieces
        return in_order.reshape(self.number * self.size, *pieces.shape[2:])


def _accumulator_name(choice: Any) -> Any:
    """optax's `AccumulationType.RUNNING_MEAN` and its like, by the names used here."""
    return choice.name.lower().removeprefix("running_") if isinstance(choice, Enum) else choice


def _check_choices(choices: Sequence[str]) -> None:
    for choice in choices:
        if choice not in ACCUMULATORS:
            raise ValueError(
                f"microbatch(accumulator=...) must be one of {ACCUMULATORS}, found {choice!r}."
            )


def _as_tuple(value: Any, one: type[Any]) -> tuple[Any, ...]:
    if one is int and hasattr(value, "__index__"):
        return (operator.index(value),)
    return (value,) if isinstance(value, one) else tuple(value)


def _batch(
    fun: Callable[..., Any], key: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> PyTree:
    """The batch argument `key`, as a tree of arrays."""
    if isinstance(key, str):
        if key not in kwargs:
            raise ValueError(
                f"microbatch(argnames=...) has '{key}', which the call does not pass by keyword."
            )
        return to_arrays(kwargs[key], f"the argument {_named(fun, key)}")
    if not -len(args) <= key < len(args):
        raise ValueError(
            f"microbatch(argnums=...) has {key}, but the call has {len(args)} positional arguments;"
            " those passed by keyword go into argnames."
        )
    return to_arrays(args[key], f"the argument {_named(fun, key)}")


def _number_of_rows(
    fun: Callable[..., Any], keys: tuple[Any, ...], axes: tuple[Any, ...], batches: list[Any]
) -> int:
    first = None
    for key, axis, batch in zip(keys, axes, batches, strict=True):
        for path, x in zip(leaf_paths(batch), jax.tree.leaves(batch), strict=True):
            where = f"the argument {_named(fun, key)}" + (f" {location(path)}" if path else "")
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(f"{where} has shape {x.shape}, and no axis {axis} of rows.")
            here = x.shape[axis], f"{where} has {x.shape[axis]} rows along axis {axis}"
            first = first or here
            if here[0] != first[0]:
                raise ValueError(f"{first[1]}, {here[1]}; batches must have as many.")
    if first is None:
        names = ", ".join(_named(fun, key) for key in keys)
        raise ValueError(f"microbatch(...) found no array in the arguments {names}.")
    return first[0]


def _named(fun: Callable[..., Any], key: int | str) -> str:
    """The name of an argument in the function's signature, or else its position."""
    if isinstance(key, str):
        return f"'{key}'"
    parameters = parameters_of(fun) or []
    named = [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    return f"'{named[key]}'" if 0 <= key < len(named) else str(key)


def _check_result(path: str, kind: str | None, x: Any, size: int) -> None:
    what = f"microbatch(...): the result {location(path)}"
    if kind == "concat" and x.shape[:1] != (size,):
        raise ValueError(
            f"{what} has shape {x.shape} for a micro-batch of {size} rows; only what has a row "
            "for each of them can be concatenated."
        )
    if kind == "mean" and not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{what} has dtype {x.dtype}, of which there is no mean; give 'sum' or 'concat' for it "
            "in accumulator."
        )
    if kind == "sum" and not jnp.issubdtype(x.dtype, jnp.number):
        raise TypeError(f"{what} has dtype {x.dtype}, of which there is no sum.")


def _number_run(number: Any, count: int) -> Any:
    """The number of micro-batches to evaluate, at most all."""
    if number is None:
        return count
    if jnp.shape(number) or not jnp.issubdtype(jnp.result_type(number), jnp.integer):
        raise TypeError(
            f"microbatch(num_real_microbatches=...) must be a whole number, found "
            f"{jnp.result_type(number)}{list(jnp.shape(number))}."
        )
    if isinstance(number, (int, np.integer)) and not 0 <= number <= count:
        raise ValueError(
            f"microbatch(num_real_microbatches=...) is {number}, of {count} micro-batches."
        )
    return jnp.clip(jnp.asarray(number), 0, count)


def _zeros(kind: str | None, x: Any) -> jax.Array | None:
    if kind not in ("mean", "sum"):
        return None
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.zeros_like(x, compute_dtype(x.dtype) if inexact else x.dtype)
