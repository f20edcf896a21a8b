"""MINRES against NumPy."""

from functools import partial

import jax
import numpy as np

from optfn.linalg.minres import minres


def test_indefinite_and_singular_equations(x64):
    """In lanes of their own lengths; the third is singular with a solution, the last is 0 = 0."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    values = [np.linspace(-3, 5, 12), np.tile([-1.0, 2.0, 7.0], 4), np.arange(-4, 8), np.ones(12)]
    matrices = np.stack([axes @ np.diag(v) @ axes.T for v in values])
    wanted = rng.normal(size=(4, 12))
    wanted[2] = matrices[2] @ wanted[2]
    wanted[3] = 0

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def solve(matrix, b, most):
        return minres(lambda x: matrix @ x, b, 1e-12, most)

    found = np.asarray(solve(matrices, wanted, 40))
    left = np.einsum("kij,kj->ki", matrices, found) - wanted
    assert (np.linalg.norm(left, axis=1) <= 1.1e-12 * np.linalg.norm(wanted, axis=1)).all()
    pairs = zip(matrices, wanted, strict=True)
    least_squares = [np.linalg.lstsq(*pair, rcond=1e-9)[0] for pair in pairs]
    np.testing.assert_allclose(found, least_squares, rtol=1e-8, atol=1e-10)
    # Three eigenvalues take three products.
    few = np.asarray(solve(matrices, wanted, 3))
    np.testing.assert_allclose(few[1], found[1], rtol=1e-9)
    assert abs(few[0] - found[0]).max() > 1e-3
