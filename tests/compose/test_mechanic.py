"""Mechanic: the factor on another optimizer's steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import optfn

STEPS, RATE = 60, 0.5
rng = np.random.default_rng(0)
START = {"a": rng.normal(size=4), "b": rng.normal(size=3)}
GRADS = {k: rng.normal(0.3, 1, size=(STEPS, *p.shape)) for k, p in START.items()}


def mechanic(p, grads, steps, weight_decay=1e-2, eps=1e-8, s_init=1e-6, num_betas=6):
    """The params after each step (Cutkosky et al. 2023, Algorithm 1), given the inner steps."""
    start, path = p, []
    b = 1 - 0.1 ** np.arange(1, num_betas + 1)
    r, m, v, s = np.zeros(num_betas), np.zeros(num_betas), np.zeros(num_betas), s_init + 0 * b
    for g, u in zip(grads, steps, strict=True):
        total = s.sum()
        pull = weight_decay * total * np.linalg.norm(g) / (np.linalg.norm(p) + eps)
        way = (start - p) / (total + eps)
        h = (g + pull * p) @ way
        r = b * r + np.clip(h, -m, m) * s
        m = np.maximum(b * m, abs(h) + eps)
        v = b**2 * v + h**2
        s = (s_init / num_betas * m + np.maximum(r, 0)) / (np.sqrt(v) + eps)
        p = start - s.sum() * (way - u)
        path.append(p)
    return np.stack(path)


@jax.jit
def run(tx, params, grads):
    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def together(tree):
    return np.concatenate([np.asarray(x) for x in tree.values()], axis=-1)


def test_a_spike_does_not_end_the_run():
    """The square of its slope overflows."""
    tx, params = optfn.mechanize(optfn.adam(0.1), s_init=0.1), jnp.ones(2)
    state, update = tx.init(params), jax.jit(functools.partial(optfn.step, tx))
    for step in range(300):
        params, state = update(params, (params - 3) * (1e25 if step == 7 else 1), state)
    assert jnp.isfinite(state.slots["mechanize"].spread).all()
    assert jnp.isfinite(params).all()


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5, "s_init": 1e-2, "num_betas": 3}])
@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_paths_equal_the_oracle_s(inner, options, x64):
    tx = optfn.mechanize(getattr(optfn, inner)(RATE), **options)
    p, grads = together(START), together(GRADS)
    alone = getattr(oracles, inner)(p, grads, RATE)
    wanted = mechanic(p, grads, np.diff(alone, axis=0, prepend=p[None]), **options)
    np.testing.assert_allclose(together(run(tx, START, GRADS)), wanted, rtol=1e-11)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_paths_are_optax_s(inner):
    params, grads = jax.tree.map(np.float32, (START, GRADS))
    ours = run(optfn.mechanize(getattr(optfn, inner)(RATE)), params, grads)
    tx = optax.contrib.mechanize(getattr(optax, inner)(RATE))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    theirs = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(params, grads)
    for name, wanted in theirs.items():
        np.testing.assert_allclose(ours[name], wanted, atol=1e-5)


def test_a_rate_that_is_far_too_small_is_made_up_for():
    """On |x - 3|, with inner steps of 1e-5, of which 3000 make 0.03."""

    def final(tx):
        def step(carry, _):
            x, state = carry
            x, state = optfn.step(tx, x, jnp.sign(x - 3), state)
            return (x, state), None

        start = jnp.zeros(())
        return float(jax.lax.scan(step, (start, tx.init(start)), length=3000)[0][0])

    assert abs(final(optfn.mechanize(optfn.sgd(1e-5))) - 3) < 0.1
    assert final(optfn.sgd(1e-5)) < 0.04


def test_the_state_holds_the_inner_slots_by_name_and_their_numbers_can_be_read():
    tx = optfn.mechanize(optfn.adam(optfn.schedules.linear(1.0, 0.0, 10)))
    params = jax.tree.map(np.float32, START)
    state = tx.init(params)
    assert set(state.slots["mechanize"].inner) == {"scale_by_adam"}
    _, state = tx.update(params, state, params)
    assert float(optfn.hyperparameters(tx, state)["learning_rate"]) == np.float32(0.9)


@pytest.mark.parametrize("num_betas", [0, 2.5])
def test_a_number_of_decays_is_a_whole_number(num_betas):
    with pytest.raises(ValueError, match=r"num_betas=\.\.\.\) must be a whole number above 0"):
        optfn.mechanize(optfn.sgd(0.1), num_betas=num_betas)
