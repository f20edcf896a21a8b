import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from optfn.core.randomness import dither

SHAPE, STEPS = (8, 256), 64


def draws():
    """Numbers of consecutive steps, `[steps, rows, columns]`."""

    @jax.jit
    def at(steps):
        keys = jax.vmap(lambda step: jax.random.fold_in(jax.random.key(3), step))(steps)
        return jax.vmap(lambda key: dither(key, jnp.zeros(SHAPE)))(keys)

    return np.asarray(at(jnp.arange(STEPS)), np.float64)


def test_numbers_are_uniform_and_below_one():
    x = draws()
    assert x.min() >= 0 and x.max() < 1
    counts = np.histogram(x, 256, (0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-4
    # Bit by bit, down to the last.
    bits = (x[..., None] * 2.0 ** np.arange(1, 25)).astype(np.int64) % 2
    assert np.abs(bits.mean((0, 1, 2)) - 0.5).max() < 5 / (2 * x.size**0.5)


def test_neighbours_steps_and_sums_are_independent():
    x = draws() - 0.5
    pairs = {
        "columns": (x[..., 1:], x[..., :-1]),
        "rows": (x[:, 1:], x[:, :-1]),
        "steps": (x[1:], x[:-1]),
        "halves": (x[..., 128:], x[..., :128]),
        "places": (x[1:, :, 1:], x[:-1, :, :-1]),
    }
    for name, (a, b) in pairs.items():
        correlation = np.mean(a * b) * 12
        assert abs(correlation) < 5 / a.size**0.5, name
    # The mean over steps, rows or columns scatters as that of independent numbers does.
    for axis in range(3):
        spread = np.var(x.mean(axis)) * 12 * x.shape[axis]
        assert abs(spread - 1) < 5 * (2 / (x.size / x.shape[axis])) ** 0.5
