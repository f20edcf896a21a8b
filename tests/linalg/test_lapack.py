"""Decompositions of one matrix after the other are those of the stack, in any transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optfn.linalg import lapack

NATIVE = {
    "qr": jnp.linalg.qr,
    "eigh": jnp.linalg.eigh,
    "svd": lambda x: jnp.linalg.svd(x, full_matrices=False),
}


def stack(shape, name):
    x = np.random.default_rng(0).normal(size=shape)
    return jnp.asarray(x + x.swapaxes(-1, -2) if name == "eigh" else x)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", NATIVE)
def test_equals_the_batched_one(name, batch, x64):
    x = stack((*batch, 4, 4), name)
    for found, wanted in zip(getattr(lapack, name)(x), NATIVE[name](x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("name", NATIVE)
def test_no_call_in_lanes_has_a_stack(name):
    """In nested lanes over stacks: every custom call is of one matrix."""
    found = jax.jit(jax.vmap(jax.vmap(getattr(lapack, name))))
    x = stack((2, 3, 2, 4, 4), name)
    text = found.lower(x).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line and "custom_call" in line]
    assert calls
    assert not any("x4x4x" in line for line in calls)
    for got, wanted in zip(found(x), NATIVE[name](x), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("name", NATIVE)
def test_derivatives_are_the_native_ones(name, x64):
    x = stack((3, 4, 4), name)

    def total(decompose):
        return lambda x: sum(jnp.sum(abs(y) ** 3) for y in decompose(x))

    for way in (lambda f: f, jax.jit):
        found = way(jax.grad(total(getattr(lapack, name))))(x)
        np.testing.assert_allclose(found, jax.grad(total(NATIVE[name]))(x), atol=1e-9)
