"""Optimizers in turn against a loop that calls each by hand, on the one state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules, sweep

PARAMS = {"w": jnp.asarray([1.0, -2.0, 0.5]), "b": jnp.asarray(0.3)}
BOUNDARIES = (3, 8)
STEPS = 12


def accumulated(rate, b1):
    return optfn.accumulate(optfn.adam(schedules.linear(rate, 0.0, 20), b1=b1), 2)


class ahead(optfn.Transform):
    """Is evaluated at a place that its number says: that of the update before, not of the next."""

    optimizer: optfn.Transform = optfn.child()
    by: float

    def init_slots(self, params):
        return self.optimizer.init_named(params)

    def apply(self, updates, slots, ctx):
        return self.optimizer.apply_named(updates, slots, ctx)

    def evaluation_params(self, params, slots, step):
        params = self.optimizer.evaluation_params_named(params, slots, step)
        return jax.tree.map(lambda p: p + self.by, params)


def averaged(rate, b1):
    return ahead(optfn.ema_of_params(optfn.monitor(optfn.adam(rate)), b1), b1)


def plain(rate, b1):
    return optfn.sgd(rate)


MAKERS = {make.__name__: make for make in (accumulated, averaged, plain)}
NUMBERS = ((0.1, 0.9), (0.03, 0.5), (0.2, 0.8))


def grads_at(step, params):
    return jax.tree.map(lambda p: jnp.cos(3 * p + step), params)


def both(make):
    txs = [make(*numbers) for numbers in NUMBERS]
    return txs, sweep.join_optimizers(optfn.stack(txs), BOUNDARIES)


def by_hand(txs):
    """Params, evaluated params and the state after every step; who is next is written out."""
    params, state, seen = PARAMS, txs[0].init(PARAMS), []
    for step, i in enumerate([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]):
        updates, state = txs[i].update(grads_at(step, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        seen.append((params, optfn.evaluation_params(txs[i], state, params), state))
    return jax.tree.map(lambda *xs: jnp.stack(xs), *seen)


@jax.jit
def scanned(tx):
    def step(carry, at):
        params, state = carry
        updates, state = tx.update(grads_at(at, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, optfn.evaluation_params(tx, state, params), state)

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), jnp.arange(STEPS))[1]


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_each_in_its_turn_on_one_state(name):
    txs, tx = both(MAKERS[name])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        scanned(tx),
        by_hand(txs),
    )


def test_lanes_of_them_are_each_alone():
    several = [
        sweep.join_optimizers(
            optfn.stack([accumulated(rate * k, b1) for rate, b1 in NUMBERS]), ends
        )
        for k, ends in ((1, (3, 8)), (2, (1, 1)))
    ]
    lanes = jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x, float) for x in xs]), *several)
    together = jax.vmap(scanned)(lanes)
    for i, tx in enumerate(several):
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-6),
            together,
            scanned(tx),
        )


def test_its_numbers_are_read_by_the_names_of_the_optimizer():
    txs, tx = both(accumulated)
    state = tx.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(txs[0].init(PARAMS))
    for step, i in {0: 0, 2: 0, 3: 1, 7: 1, 8: 2}.items():
        here = state._replace(step=jnp.int32(step))
        found, wanted = (optfn.hyperparameters(x, here) for x in (tx, txs[i]))
        assert list(found) == list(wanted)
        np.testing.assert_allclose([*found.values()], [*wanted.values()], rtol=1e-6)
    other = optfn.replace(tx, b1=jnp.asarray([0.1, 0.2, 0.3]))
    found = optfn.hyperparameters(other, state._replace(step=jnp.int32(5)))["b1"]
    np.testing.assert_allclose(found, 0.2)


def test_what_it_measures_is_told_once():
    _, tx = both(averaged)
    _, state = tx.update(grads_at(0, PARAMS), tx.init(PARAMS), PARAMS)
    names = list(optfn.metrics(tx, state))
    assert names and len(set(names)) == len(names)


def test_its_text_is_its_recipe():
    _, tx = both(plain)
    places = {"sweep": sweep, "schedules": schedules, "jnp": jnp, "np": np, "jax": jax}
    again = eval(repr(tx), vars(optfn) | places)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    jax.tree.map(np.testing.assert_array_equal, again, tx)


def test_numbers_that_are_not_in_front_are_refused_by_path():
    with pytest.raises(ValueError, match=r"2 optimizers, .* found the shape \(\) at .*b1"):
        sweep.join_optimizers(optfn.adam(0.1), (10,))
    with pytest.raises(ValueError, match=r"3 optimizers, .* the shape \(2,\) at"):
        sweep.join_optimizers(optfn.stack([optfn.adam(0.1), optfn.adam(0.2)]), (10, 20))
