"""Every rule that uses a norm, where norms are not float32 numbers, against double precision."""

import inspect
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn

NORMS = re.compile(r"\b(global_norm|norm_of|norms_along|root_mean_square|_norms)\(")

# They keep a norm, a square or an inner product in their state, as their papers do.
KEPT = {
    *("dog", "dowg", "layer-wise dog", "mechanize", "monitor", "skip_spikes", "momo", "momo_adam"),
    *("prodigy", "dadapt_adamw", "novograd", "lamb", "stable_adamw", "adafactor", "lbfgs"),
    "apollo",
}
# It starts from numbers that are drawn, which are others in double precision; in test_dion.py.
DRAWN = {"dion"}
EXTRA_ARGS = cases.EXTRA_ARGS | {"polyak_sgd": {"value": 1e30}}


def parts(tx):
    return {type(tx)}.union(*map(parts, tx.contents))


def uses_a_norm(tx):
    return any(NORMS.search(inspect.getsource(cls)) for cls in parts(tx))


# Not after the squares of Adam.
EVERY = cases.OPTIMIZERS | cases.STAGES | {"hyperball": optfn.hyperball(0.01)}
USERS = [name for name, tx in EVERY.items() if uses_a_norm(tx) and name not in KEPT | DRAWN]
SIZES = [(3e37, 3e37), (3e37, 1.0), (1.0, 3e37), (1e-30, 3e37), (1e-30, 1e-30)]


def entries(seed, last):
    values = np.random.default_rng(seed).uniform(0.5, 1, (40, 25))
    return {"w": values, "b": np.asarray(last)}


GRADS, PARAMS = entries(0, [1.0, 0, 1]), entries(1, [1.0, 1, 0])


def updates_of(tx, dtype, given):
    """The updates for all sizes of the gradient and the params."""

    @jax.jit
    def update(sizes):
        grads, params = (
            {path: jnp.asarray(x, dtype) * size for path, x in tree.items()}
            for tree, size in zip((GRADS, PARAMS), sizes, strict=True)
        )
        return tx.update(grads, tx.init(params), params, **given)[0]

    return [jax.device_get(update(jnp.asarray(sizes, dtype))) for sizes in SIZES]


@pytest.mark.parametrize("name", USERS)
def test_an_update_is_right_where_norms_are_out_of_range(name):
    found = updates_of(EVERY[name], jnp.float32, EXTRA_ARGS.get(name, {}))
    with jax.enable_x64(True):
        right = updates_of(EVERY[name], jnp.float64, EXTRA_ARGS.get(name, {}))
    for sizes, own, true in zip(SIZES, found, right, strict=True):
        for path, u in true.items():
            with np.errstate(over="ignore"):
                u = u.astype(np.float32)
            largest = np.abs(u[np.isfinite(u)]).max(initial=0)
            # A step that keeps a norm is a difference of params, and rounded as these are.
            atol = 1e-6 * max(largest, sizes[1] if "hyperball" in name else 0) + 1e-37
            np.testing.assert_allclose(
                own[path], u, rtol=2e-5, atol=atol, err_msg=f"{sizes} {path}"
            )


def test_a_unit_of_two_large_entries_is_clipped_to_its_limit():
    tx, params = optfn.adaptive_grad_clip(0.1), jnp.ones(3)
    updates, _ = tx.update(jnp.asarray([3e38, 3e38, 0]), tx.init(params), params)
    share = 0.1 * 3**0.5 / 2**0.5
    np.testing.assert_allclose(updates, [share, share, 0], rtol=1e-6)
