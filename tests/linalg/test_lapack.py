"""One matrix after the other gives what the stack gives, in any transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

import optfn
from optfn import linalg
from optfn.linalg import lapack

NATIVE = {
    "qr": jnp.linalg.qr,
    "eigh": jnp.linalg.eigh,
    "svd": lambda x: jnp.linalg.svd(x, full_matrices=False),
    "inverse_of_upper": lambda r: jnp.linalg.inv(jnp.triu(r)),
    "solve_adjoint": partial(solve_triangular, trans="C"),
}
SOLVES = ("inverse_of_upper", "solve_adjoint")


def stacks(shape, name, dtype=float):
    """The arguments, each a stack of matrices."""
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(2, *shape))
    if dtype is complex:
        x, b = np.array([x, b]) + 1j * rng.normal(size=(2, *shape))
    if name == "eigh":
        x = x + x.swapaxes(-1, -2).conj()
    if name in SOLVES:
        x = x + 4 * np.eye(shape[-1])
    return (jnp.asarray(x), jnp.asarray(b))[: 1 + (name == "solve_adjoint")]


def assert_close(found, wanted, atol):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for x, y in leaves:
        np.testing.assert_allclose(x, y, atol=atol)


def total(function):
    """A number that depends on all that is found, but on no sign or phase of a vector."""

    def of(given):
        return sum(jnp.sum(abs(y) ** 3) for y in jax.tree.leaves(function(*given)))

    return of


def calls_of_stacks(function, *args):
    """The calls of LAPACK in a program, and those of them that take a stack of 4 x 4."""
    text = jax.jit(function).lower(*args).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line and "custom_call" in line]
    return calls, [line for line in calls if "x4x4x" in line]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", NATIVE)
def test_equals_the_batched_one(name, batch, x64):
    given = stacks((*batch, 4, 4), name)
    assert_close(getattr(lapack, name)(*given), NATIVE[name](*given), 1e-12)


@pytest.mark.parametrize("name", NATIVE)
def test_no_call_in_lanes_has_a_stack(name):
    """In nested lanes over stacks: every custom call is of one matrix."""
    found = jax.vmap(jax.vmap(getattr(lapack, name)))
    given = stacks((2, 3, 2, 4, 4), name)
    calls, of_stacks = calls_of_stacks(found, *given)
    assert calls
    assert not of_stacks
    assert_close(jax.jit(found)(*given), NATIVE[name](*given), 2e-5)


def curvature(function):
    """A second derivative, along all ones."""

    def of(given):
        ones = jax.tree.map(jnp.ones_like, given)
        return jax.grad(lambda given: jax.jvp(total(function), (given,), (ones,))[1])(given)

    return of


DIFFERENTIABLE = {name: (getattr(lapack, name), name) for name in NATIVE} | {
    "eigenbasis": (linalg.eigenbasis, "eigh"),
    "power_step": (lambda a: linalg.power_step(a, jnp.broadcast_to(jnp.eye(4), a.shape)), "eigh"),
    "polar": (linalg.polar, "qr"),
    "inverse_root": (lambda a: linalg.inverse_root(a @ a, 4), "eigh"),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_derivative_in_lanes_has_a_stack(name):
    function, of = DIFFERENTIABLE[name]
    given = stacks((2, 3, 2, 4, 4), of)
    for way in (lambda f: jax.grad(total(f)), curvature):
        calls, of_stacks = calls_of_stacks(jax.vmap(jax.vmap(way(function))), given)
        assert calls
        assert not of_stacks


@pytest.mark.parametrize("name", ["dion", "soap", "shampoo", "kron"])
def test_no_hypergradient_of_stacked_matrices_has_a_stack(name):
    params = {"w": jnp.ones((3, 4, 4))}
    views = optfn.MatrixAxes(rows=-1, columns=-2)

    def after(rate, grads):
        tx = getattr(optfn, name)(rate, views=views)
        updates, state = tx.update(grads, tx.init(params), params)
        return total(lambda *found: found)((updates, state.slots))

    derivative = jax.vmap(jax.grad(after, argnums=1), in_axes=(None, 0))
    grads = {"w": stacks((2, 3, 4, 4), "qr")[0]}
    calls, of_stacks = calls_of_stacks(derivative, 0.1, grads)
    assert calls
    assert not of_stacks


def test_one_argument_may_have_no_lanes():
    a, b = stacks((3, 4, 4), "solve_adjoint")
    found = jax.vmap(lapack.solve_adjoint, in_axes=(None, 0))(a[0], b)
    assert_close(found, NATIVE["solve_adjoint"](jnp.stack([a[0]] * 3), b), 1e-6)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (3, 4, 4)) for name in NATIVE]
    + [("qr", (2, 5, 3)), ("svd", (2, 5, 3)), ("svd", (2, 3, 5))],
)
def test_derivatives_are_the_native_ones(name, shape, dtype, x64):
    given = stacks(shape, name, dtype)
    ways = [jax.grad(total(function)) for function in (getattr(lapack, name), NATIVE[name])]
    assert_close(*jax.jit(lambda given: [way(given) for way in ways])(given), 1e-9)


@pytest.mark.parametrize("name", NATIVE)
def test_second_derivatives_are_the_native_ones(name, x64):
    given = stacks((4, 4), name)
    ways = [curvature(function) for function in (getattr(lapack, name), NATIVE[name])]
    assert_close(*jax.jit(lambda given: [way(given) for way in ways])(given), 1e-7)


def differences(function, x, dx):
    return (function(x + 1e-6 * dx) - function(x - 1e-6 * dx)) / 2e-6


def test_the_derivative_of_a_wide_matrix_s_factors(x64):
    """Which jax has not."""
    x, dx = stacks((2, 3, 5), "qr")[0]
    _, changes = jax.jvp(lapack.qr, (x,), (dx,))
    for i, change in enumerate(changes):
        np.testing.assert_allclose(
            change, differences(lambda x, i=i: lapack.qr(x)[i], x, dx), atol=1e-8
        )


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_the_polar_factor_has_a_derivative_where_singular_values_coincide(shape, dtype, x64):
    x, dx = stacks((2, *shape), "qr", dtype)[0]
    polar = jax.jit(linalg.polar)
    both = jax.jit(lambda x, dx: (jax.jvp(polar, (x,), (dx,))[1], differences(polar, x, dx)))
    for matrix in (x, polar(x)):
        np.testing.assert_allclose(*both(matrix, dx), atol=1e-8)


@pytest.mark.parametrize("name", ["qr", "svd", "eigh"])
def test_derivatives_are_finite_where_there_are_none(name, x64):
    low_rank, gradient = stacks((4, 2), "qr")[0], jax.jit(jax.grad(total(getattr(lapack, name))))
    for x in (jnp.zeros((4, 4)), jnp.eye(4), low_rank @ low_rank.T):
        assert jnp.isfinite(gradient((x,))[0]).all()
