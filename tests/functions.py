"""What the tests of line searches and of whole runs minimize."""

import jax
import jax.numpy as jnp


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
