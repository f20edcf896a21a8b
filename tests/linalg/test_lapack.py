"""One matrix after the other gives what the stack gives, in any transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

from optfn.linalg import lapack

NATIVE = {
    "qr": jnp.linalg.qr,
    "eigh": jnp.linalg.eigh,
    "svd": lambda x: jnp.linalg.svd(x, full_matrices=False),
    "solve_adjoint": partial(solve_triangular, trans="C"),
}


def stacks(shape, name):
    """The arguments, each a stack of matrices."""
    x, b = np.random.default_rng(0).normal(size=(2, *shape))
    if name == "eigh":
        x = x + x.swapaxes(-1, -2)
    if name == "solve_adjoint":
        return jnp.asarray(x + 4 * np.eye(shape[-1])), jnp.asarray(b)
    return (jnp.asarray(x),)


def assert_close(found, wanted, atol):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for x, y in leaves:
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", NATIVE)
def test_equals_the_batched_one(name, batch, x64):
    given = stacks((*batch, 4, 4), name)
    assert_close(getattr(lapack, name)(*given), NATIVE[name](*given), 1e-12)


@pytest.mark.parametrize("name", NATIVE)
def test_no_call_in_lanes_has_a_stack(name):
    """In nested lanes over stacks: every custom call is of one matrix."""
    found = jax.jit(jax.vmap(jax.vmap(getattr(lapack, name))))
    given = stacks((2, 3, 2, 4, 4), name)
    text = found.lower(*given).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line and "custom_call" in line]
    assert calls
    assert not any("x4x4x" in line for line in calls)
    assert_close(found(*given), NATIVE[name](*given), 2e-5)


def test_one_argument_may_have_no_lanes():
    a, b = stacks((3, 4, 4), "solve_adjoint")
    found = jax.vmap(lapack.solve_adjoint, in_axes=(None, 0))(a[0], b)
    assert_close(found, NATIVE["solve_adjoint"](jnp.stack([a[0]] * 3), b), 1e-6)


@pytest.mark.parametrize("name", NATIVE)
def test_derivatives_are_the_native_ones(name, x64):
    given = stacks((3, 4, 4), name)

    def total(function):
        def of(given):
            return sum(jnp.sum(abs(y) ** 3) for y in jax.tree.leaves(function(*given)))

        return of

    for way in (lambda f: f, jax.jit):
        found = way(jax.grad(total(getattr(lapack, name))))(given)
        assert_close(found, jax.grad(total(NATIVE[name]))(given), 1e-9)
