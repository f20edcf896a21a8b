"""What the tests of line searches and of whole runs minimize."""

import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp


def of_benchmarks(name):
    """A module of `benchmarks/`, whose names are also those of folders here: others stay hidden."""
    place = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, place)
    try:
        return import_module(name)
    finally:
        sys.path.remove(place)


def rosenbrock(x):
    """Chained over all neighbours, as SciPy has it."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def counted(function):
    """The function, and a dict of how often its value and its gradient have been evaluated."""
    calls = {"value": 0, "grad": 0}

    def note(name):
        calls[name] += 1

    @jax.custom_vjp
    def noting(x):
        jax.debug.callback(lambda: note("value"))
        return function(x)

    def forward(x):
        jax.debug.callback(lambda: note("value"))
        return function(x), x

    def backward(x, c):
        jax.debug.callback(lambda: note("grad"))
        return (c * jax.grad(function)(x),)

    noting.defvjp(forward, backward)
    return noting, calls
