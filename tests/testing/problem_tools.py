"""What the tests of the problems share: starts, spectra, runs and draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


def gradient(problem, params):
    """Of the noiseless objective."""
    return jax.jit(jax.grad(problem.value))(params)


def hessian(problem, params):
    """Of the noiseless objective, as a matrix over all entries of the params."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: problem.value(unravel(x))))(flat))


def spectrum(problem, params):
    """The eigenvalues, in ascending order, of the Hessian of the noiseless objective."""
    return np.linalg.eigvalsh(hessian(problem, params))


@functools.cache
def starts(problem):
    """For 64 keys, in float32: the starts, their values, and the losses and gradients there."""

    @jax.jit
    @jax.vmap
    def evaluate(params, key):
        return problem.value(params), *jax.value_and_grad(problem.loss)(params, key)

    with jax.enable_x64(False):
        keys = jax.random.split(jax.random.key(0), 64)
        # Inside the other program the compiler would compute them twice, and round them otherwise.
        params = jax.jit(jax.vmap(problem.init))(keys)
        return params, *evaluate(params, keys)


def negate(problem, optimizer, steps, seeds=8):
    """Noiseless values, of shape (seeds, steps), after every step down the loss in float32."""

    @jax.jit
    @jax.vmap
    def run(params, key):
        def step(carry, count):
            params, state = carry
            grads = jax.grad(problem.loss)(params, jax.random.fold_in(key, count))
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), problem.value(params)

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    keys = jax.random.split(jax.random.key(1), 64)
    params = starts(problem)[0]
    return np.asarray(run(*jax.tree.map(lambda leaf: leaf[:seeds], (params, keys))))


def draw(problem, params, draws=10_000):
    """Losses and gradients at ``params`` under as many keys as ``draws``."""
    keys = jax.random.split(jax.random.key(1), draws)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(problem.loss), (None, 0)))(params, keys)
    return np.asarray(losses), np.asarray(gradients)
