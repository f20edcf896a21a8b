"""The function that `minimize` minimizes, as a hashable value."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from optfn.core.data import as_number
from optfn.core.dtypes import dtype_of
from optfn.core.holes import merge, view
from optfn.core.tree import PyTree, leaf_location


@dataclasses.dataclass(frozen=True)
class Objective:
    """A function `fun(x, *args)` with what is known of it; equal ones compile once.

    Attributes:
        fun: it gives a real scalar, or with `has_aux` a pair of it and arrays.
        has_aux: whether it gives a pair.
        derivative: what gives the value and the gradient, as `jax.value_and_grad(fun, has_aux=...)`
            does, which it is if None.
    """

    fun: Callable[..., Any]
    has_aux: bool = False
    derivative: Callable[..., Any] | None = None

    def value_and_aux(self, x: PyTree, *args: Any) -> tuple[jax.Array, Any]:
        """The value, checked, and the auxiliary output, None without one."""
        return self._checked(self.fun(x, *args), "fun")

    def value_fn(self, *args: Any) -> Callable[[PyTree], jax.Array]:
        """The function of x alone; its gradient is the user's own, if there is one."""

        def value_of(x: PyTree) -> jax.Array:
            return self.value_and_aux(x, *args)[0]

        if self.derivative is None:
            return value_of
        own = jax.custom_vjp(value_of)
        own.defvjp(
            lambda x: self.value_and_grad(x, *args),
            lambda grad, c: (jax.tree.map(lambda g: jnp.asarray(c * g, g.dtype), grad),),
        )
        return own

    def value_and_grad(self, x: PyTree, *args: Any) -> tuple[jax.Array, PyTree]:
        """The value and jax's gradient, in the dtypes of x."""
        if self.derivative is None:
            return jax.value_and_grad(lambda x: self.value_and_aux(x, *args)[0])(x)
        where = "minimize(value_and_grad=...)"
        found = self.derivative(x, *args)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"{where} must give the pair (value, gradient), found {_form(found)}.")
        value, _ = self._checked(found[0], "value_and_grad")
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (found[1], x)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{where} must give a gradient like x0, found {_form(found[1])}.")
        return value, jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), found[1], x)

    def _checked(self, out: Any, name: str) -> tuple[Any, Any]:
        is_pair = isinstance(out, tuple) and len(out) == 2
        if self.has_aux != is_pair:
            found = (
                "has_aux is True and it gives one" if self.has_aux else "it gives a pair without"
            )
            raise TypeError(f"minimize({name}=...) gives a pair with has_aux=True alone; {found}.")
        value, aux = out if self.has_aux else (out, None)
        is_array = isinstance(value, (jax.Array, np.ndarray, np.generic, int, float, complex))
        if not is_array or jnp.shape(value) or not jnp.issubdtype(dtype_of(value), jnp.floating):
            found = _form(value) if is_array else type(value).__name__
            raise ValueError(f"minimize({name}=...) must give a real scalar, found {found}.")
        return value, aux

    def over(self, mine: list[bool]) -> "Objective":
        """The function of the params that are `mine`, whose next argument is all params."""
        part = tuple(mine)
        derivative = None if self.derivative is None else _PartOfGradient(self.derivative, part)
        return Objective(_OfPart(self.fun, part), self.has_aux, derivative)

    def hoisted(self, x: PyTree, args: tuple[Any, ...]) -> tuple["Objective", tuple[Any, ...]]:
        """The function with what it closes over inside a trace as arguments.

        A function of arrays that are known is returned as it is.
        """
        fun, closed = _hoisted(self.fun, x, args)
        derivative, also_closed = self.derivative, []
        if derivative is not None:
            derivative, also_closed = _hoisted(derivative, x, args)
        if not closed and not also_closed:
            return self, args
        n = len(args)
        fun = _with_own(fun, n, slice(n, n + len(closed)))
        if derivative is not None:
            derivative = _with_own(derivative, n, slice(n + len(closed), None))
        return Objective(fun, self.has_aux, derivative), (*args, *closed, *also_closed)


def check_args(args: tuple[Any, ...], where: str) -> None:
    """Refuses arguments that are no tuple, or no data, which belongs into the function."""
    if not isinstance(args, tuple):
        raise TypeError(
            f"{where} must be a tuple, as in args=(data,), found {type(args).__name__}."
        )
    for i, leaf in enumerate(jax.tree.leaves(args)):
        kinds = (jax.Array, np.ndarray, np.generic, int, float, complex)
        is_array = isinstance(leaf, kinds) or hasattr(leaf, "__jax_array__")
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if not is_array or kind in ("O", "S", "U", "M", "m"):
            found = (
                f"an array of {np.asarray(leaf).dtype}"
                if is_array
                else f"{type(leaf).__name__} {leaf!r:.40}"
            )
            raise TypeError(
                f"{where} must hold arrays and numbers, found {found} "
                f"{leaf_location(args, i)}; what is no data belongs into the function, as in "
                "lambda x, *data: fun(x, *data, option)."
            )


def check_scalar(number: Any, where: str) -> None:
    """Refuses what is not one number."""
    if jnp.shape(as_number(number, where)):
        raise ValueError(f"{where} must be one number, found shape {jnp.shape(number)}.")


def check_limit(limit: Any, where: str) -> None:
    """Refuses what is not one number of at least 0, as far as it is known."""
    is_known = isinstance(limit, (int, float, np.ndarray, np.generic))
    if is_known and np.issubdtype(np.asarray(limit).dtype, np.floating) and np.isnan(limit).any():
        raise ValueError(f"{where} is NaN: no run ends by such a limit.")
    check_scalar(limit, where)
    if is_known and np.any(np.asarray(limit) < 0):
        raise ValueError(f"{where} must be at least 0, found {limit}.")


def check_function(function: Any, where: str) -> None:
    """Refuses what cannot be called, or cannot be looked up among the functions compiled before."""
    found = type(function).__name__
    if not callable(function):
        raise TypeError(f"{where} must be a function, found {found}.")
    if holds_arrays(function):
        return
    try:
        hash(function)
    except TypeError:
        raise TypeError(
            f"{where} must be hashable or a pytree, found {found}; give a method or a lambda that "
            "calls it, or freeze the dataclass."
        ) from None


def holds_arrays(function: Callable[..., Any] | None) -> bool:
    """Whether a function is a pytree, as a module is."""
    return function is not None and not jax.tree_util.all_leaves([function])


def in_program() -> bool:
    """Whether what is computed here is only traced."""
    return isinstance(lax.full((), 0.0), Tracer)


def on_hoisted(
    run: Callable[[Objective, tuple[Any, ...]], Any],
    objective: Objective,
    x: PyTree,
    args: tuple[Any, ...],
) -> Any:
    """`run(objective, args)`; what the function closes over in a trace is among its arguments."""
    if in_program():
        objective, args = objective.hoisted(x, args)
    try:
        return run(objective, args)
    except jax.errors.UnexpectedTracerError:
        hoisted, args = objective.hoisted(x, args)
        if hoisted is objective:
            raise
        return run(hoisted, args)


def _hoisted(
    function: Callable[..., Any], x: PyTree, args: tuple[Any, ...]
) -> tuple[Callable[..., Any], list[Any]]:
    """A function of x, the arguments and the tracers that it closes over, and these.

    Unlike `jax.closure_convert` it takes whole numbers and random keys too: what a custom
    derivative closes over must be known.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(x, *args)
    tracers = [c for c in closed.consts if isinstance(c, Tracer)]
    if not tracers:
        return function, []

    def of_all(x: PyTree, *given: Any) -> Any:
        args, own = given[: len(given) - len(tracers)], iter(given[len(given) - len(tracers) :])
        consts = [next(own) if isinstance(c, Tracer) else c for c in closed.consts]
        leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves((x, *args)))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return of_all, tracers


def _with_own(function: Callable[..., Any], count: int, own: slice) -> Callable[..., Any]:
    """A function of x, so many arguments and its own ones, given more."""
    return lambda x, *args: function(x, *args[:count], *args[own])


@dataclasses.dataclass(frozen=True)
class _OfPart:
    """A function of the params that are not frozen."""

    fun: Callable[..., Any]
    mine: tuple[bool, ...]

    def __call__(self, own: PyTree, every: PyTree, *args: Any) -> Any:
        return self.fun(merge(own, every, list(self.mine)), *args)


@dataclasses.dataclass(frozen=True)
class _PartOfGradient(_OfPart):
    """A value and a gradient, without the part of the frozen params."""

    def __call__(self, own: PyTree, every: PyTree, *args: Any) -> Any:
        value, grad = super().__call__(own, every, *args)
        return value, view(grad, list(self.mine))


def _form(found: PyTree) -> str:
    return str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", found))
