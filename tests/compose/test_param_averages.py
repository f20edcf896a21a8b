"""Averages of the params beside a run: their closed forms, and where they are found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules

STEPS = 30
RNG = np.random.default_rng(0)
GRADS = {"w": RNG.normal(size=(STEPS, 2, 3)), "b": RNG.normal(size=(STEPS, 2))}
START = {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=2)}
RATE = 0.1
SGD = optfn.sgd(RATE)


@jax.jit
def paths(tx, start, grads):
    """The params, and the params to evaluate at, after each step."""

    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), (params, optfn.evaluation_params(tx, state, params))

    return jax.lax.scan(step, (start, tx.init(start)), grads)[1]


def way(name):
    """The params of gradient descent after each step."""
    return START[name] - RATE * np.cumsum(GRADS[name], axis=0)


def weighted(name, weights):
    """At each step the mean of the params so far, with weights `weights[step, params]`."""
    weights = np.tril(weights)
    return np.tensordot(weights / weights.sum(1, keepdims=True), way(name), 1)


def assert_averages(tx, weights):
    """In double precision, at a few roundings for each step."""
    params, averages = paths(tx, START, GRADS)
    for name in START:
        np.testing.assert_allclose(params[name], way(name), rtol=1e-11, atol=1e-12)
        wanted = weighted(name, weights)
        np.testing.assert_allclose(averages[name], wanted, rtol=1e-11, atol=1e-12)


# Closed forms. Row t has the weights in the average after update t + 1.

T, S = np.ogrid[1 : STEPS + 1, 1 : STEPS + 1]


def kept(decays):
    """The product of the decays after s up to t."""
    logs = np.cumsum(np.log(decays))
    return np.exp(logs[:, None] - logs[None, :])


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_an_average_forgets_exponentially(decay, x64):
    assert_averages(optfn.ema_of_params(SGD, decay), decay ** np.maximum(T - S, 0.0))


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_without_debias_the_first_params_keep_the_weight_that_was_left(decay, x64):
    weights = np.where(S == 1, 1, 1 - decay) * decay ** np.maximum(T - S, 0.0)
    assert_averages(optfn.ema_of_params(SGD, decay, debias=False), weights)


def test_decays_may_rise_while_the_average_is_young(x64):
    decays = np.minimum(0.6, np.arange(1, STEPS + 1) / np.arange(10, STEPS + 10))
    tx = optfn.ema_of_params(SGD, schedules.ema_warmup(0.6))
    assert_averages(tx, (1 - decays) * kept(decays))


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 6.94])
def test_the_power_law_weighs_by_a_power_of_time(gamma, debias, x64):
    tx = optfn.ema_of_params(SGD, schedules.ema_power_law(gamma), debias)
    assert_averages(tx, S ** (gamma + 1) - (S - 1.0) ** (gamma + 1) + 0.0 * T)


def test_the_mean_weighs_all_alike(x64):
    assert_averages(optfn.mean_of_params(SGD), np.ones((STEPS, STEPS)))


@pytest.mark.parametrize(("start", "every"), [(7, 1), (0, 4), (5, 3)])
def test_a_turn_comes_every_so_many_updates_after_the_start(start, every, x64):
    """Before the first, the params are evaluated at themselves."""
    turn = (start < S) & ((S - start) % every == 0)
    before = np.where((start + every > T) & (S == T), 1, 0)
    mean = optfn.mean_of_params(SGD, start, every)
    assert_averages(mean, np.where(turn, 1, 0) + before)
    ema = optfn.ema_of_params(SGD, 0.7, start=start, every=every)
    turns_since = np.maximum((T - start) // every - (S - start) // every, 0)
    assert_averages(ema, np.where(turn, 0.7**turns_since, 0) + before)


@pytest.mark.parametrize(("start", "every"), [(10, 1), (0, 4), (5, 3)])
def test_a_schedule_is_read_at_the_count_of_params_in_the_average(start, every, x64):
    """The power law weighs by a power of the number of the turn, whenever turns come."""
    tx = optfn.ema_of_params(SGD, schedules.ema_power_law(2.5), start=start, every=every)
    turn = (start < S) & ((S - start) % every == 0)
    number = np.maximum((S - start) / every, 1)
    before = np.where((start + every > T) & (S == T), 1, 0)
    assert_averages(tx, np.where(turn, number**3.5 - (number - 1) ** 3.5, 0) + before)


def test_the_decay_that_is_read_is_the_next_turn_s():
    tx = optfn.ema_of_params(SGD, schedules.ema_power_law(0.0), start=1, every=2)
    params, state, decays = START, tx.init(START), []
    for _ in range(6):
        decays.append(float(optfn.hyperparameters(tx, state)["decay"]))
        params, state = optfn.step(tx, params, START, state)
    np.testing.assert_allclose(decays, [0, 0, 0, 1 / 2, 1 / 2, 2 / 3], rtol=1e-6)


# optax's average, of the same params.


@pytest.mark.parametrize("debias", [True, False])
def test_it_is_optax_s_ema_of_the_params(debias, x64):
    """Without debias that begins at zero, and this at the first params."""
    theirs = optax.ema(0.9, debias)
    state = theirs.init(START)
    averages = paths(optfn.ema_of_params(SGD, 0.9, debias), START, GRADS)[1]
    for t in range(STEPS):
        params = {name: jnp.asarray(way(name)[t]) for name in START}
        wanted, state = theirs.update(params, state)
        first = 0.0 if debias else 0.9 ** (t + 1)
        for name in START:
            mine = averages[name][t] - first * way(name)[0]
            np.testing.assert_allclose(mine, wanted[name], rtol=1e-9, atol=1e-9)


# The run goes on as without it.

AVERAGING = {
    "ema_of_params": lambda tx, **kwargs: optfn.ema_of_params(tx, 0.9, **kwargs),
    "mean_of_params": optfn.mean_of_params,
}
each = pytest.mark.parametrize("wrap", AVERAGING.values(), ids=AVERAGING)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_updates_are_left_as_they_are_bit_for_bit(wrap, dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
    plain, averaged = optfn.adam(RATE), wrap(optfn.adam(RATE))
    states = plain.init(params), averaged.init(params)
    for t in range(3):
        grads = jax.tree.map(lambda g, t=t: jnp.asarray(g[t], dtype), GRADS)
        wanted, plain_state = plain.update(grads, states[0], params)
        found, state = averaged.update(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        (inner,) = (slots.inner for slots in state.slots.values())
        jax.tree.map(np.testing.assert_array_equal, inner, plain_state.slots)
        states, params = (plain_state, state), optfn.apply_updates(params, found)


@each
def test_params_that_stand_still_are_their_own_average(wrap):
    """Exactly: what is added is a share of a difference."""
    params, averages = paths(wrap(optfn.sgd(0.0)), *jax.tree.map(jnp.float32, (START, GRADS)))
    jax.tree.map(np.testing.assert_array_equal, averages, params)


# Dtypes and leaves.


@pytest.mark.filterwarnings("ignore:.* may stand still")
def test_the_average_of_bfloat16_params_is_float32():
    """Of the params as they are stored: what rounding took from an update is not in it."""
    start, grads = jnp.ones(2, jnp.bfloat16), jnp.full((100, 2), -1.0, jnp.bfloat16)
    for rate, moves in ((2.0**-7, True), (2.0**-10, False)):
        tx = optfn.mean_of_params(optfn.sgd(rate))
        params, averages = paths(tx, start, grads)
        assert averages.dtype == jnp.bfloat16
        assert bool((params != 1).any()) == moves
        exact = np.cumsum(np.asarray(params, float), 0) / np.arange(1, 101)[:, None]
        # A mean of stored params, rounded once to bfloat16 at the end.
        np.testing.assert_allclose(np.asarray(averages, float), exact, rtol=2.0**-8)
    slots = tx.init(start).slots["mean_of_params"]
    assert slots.average.dtype == slots.weight.dtype == jnp.float32


@each
def test_frozen_integers_none_and_complex_leaves(wrap):
    params = {"w": jnp.ones(2), "z": jnp.ones(2, jnp.complex64), "n": jnp.arange(3), "none": None}
    grads = {"w": jnp.ones(2), "z": 1j * jnp.ones(2), "n": np.zeros(3, jax.dtypes.float0)}
    tx = wrap(optfn.freeze(optfn.sgd(0.5), lambda path, leaf: path == "n"))
    state = tx.init(params)
    found = optfn.evaluation_params(tx, state, params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    params, state = optfn.step(tx, params, grads | {"none": None}, state)
    found = optfn.evaluation_params(tx, state, params)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, params)
    jax.tree.map(np.testing.assert_array_equal, found, params)  # an average of one


# Where the averages are looked for, and of what.


@each
def test_it_is_found_inside_other_transforms(wrap):
    tx = wrap(SGD)
    alone = paths(tx, START, GRADS)[1]
    chained = optfn.chain(optfn.clip(1e6), tx)
    named = optfn.chain(optfn.scale(1.0), optfn.chain(tx).named("inner"))
    for whole in (chained, named):
        found = paths(whole, START, GRADS)[1]
        for name in START:
            np.testing.assert_allclose(found[name], alone[name], atol=1e-6)
    for selective in (
        optfn.partition({"x": tx, "y": SGD}, {"w": "x", "b": "y"}),
        optfn.freeze(tx, {"w": False, "b": True}),
        optfn.chain(optfn.scale_by_learning_rate(-1.0), optfn.masked(tx, {"w": True, "b": False})),
    ):
        params, found = paths(selective, START, GRADS)
        np.testing.assert_allclose(found["w"], alone["w"], atol=1e-6)
        np.testing.assert_array_equal(found["b"], params["b"])
        assert not np.allclose(params["w"], found["w"])


@each
def test_nothing_may_change_the_updates_that_it_has_seen(wrap):
    """Or the average is of params that never were."""
    tx = wrap(SGD)
    for whole in (
        lambda: optfn.chain(tx, optfn.scale(0.5)),
        lambda: optfn.chain(optfn.chain(optfn.clip(1.0), tx), optfn.scale(0.5)),
        lambda: optfn.chain(optfn.chain(optfn.clip(1.0), tx).named("inner"), optfn.scale(0.5)),
        lambda: optfn.chain(optfn.freeze(tx, {"w": True, "b": False}), optfn.scale(0.5)),
        lambda: optfn.chain(optfn.partition({"x": tx}, "x"), optfn.scale(0.5)),
        lambda: optfn.chain(optfn.accumulate(tx, 2), optfn.scale(0.5)),
    ):
        with pytest.raises(ValueError, match=f": scale would change the updates of {tx.name}, whi"):
            whole()
    for whole, name in (
        (lambda: optfn.lookahead(tx, 5, 0.5), "the synchronization"),
        (lambda: optfn.mechanize(tx), "mechanize"),
        (lambda: optfn.primal_averaging(tx, 0.9, 0.5), "primal_averaging"),
        (lambda: optfn.ema_nesterov(tx, 0.9, 0.5), "ema_nesterov"),
        (lambda: optfn.schedule_free(tx, 0.1), "schedule_free"),
        (lambda: optfn.cautious(tx), "cautious"),
    ):
        with pytest.raises(ValueError, match=f": {name} would change the updates of {tx.name}"):
            whole()
    optfn.chain(optfn.clip(1.0), wrap(optfn.lookahead(optfn.chain(SGD, optfn.scale(0.5)), 5, 0.5)))


@each
def test_frozen_leaves_are_their_own_average(wrap):
    tx = wrap(optfn.freeze(SGD, {"w": False, "b": True}))
    found = paths(tx, jax.tree.map(jnp.float32, START), GRADS)[1]
    np.testing.assert_array_equal(found["b"], np.broadcast_to(np.float32(START["b"]), (STEPS, 2)))
    np.testing.assert_allclose(found["w"], paths(wrap(SGD), START, GRADS)[1]["w"], atol=1e-6)


@pytest.mark.parametrize(
    "inside",
    [
        optfn.schedule_free_sgd(RATE),
        optfn.lookahead(SGD, 5, 0.5),
        optfn.sam(SGD, optfn.chain(optfn.normalize(), optfn.sgd(0.05)), sync_period=2),
    ],
    ids=lambda tx: tx.name,
)
def test_the_params_that_the_optimizer_evaluates_at_are_averaged(inside, x64):
    own = paths(inside, START, GRADS)[1]
    found = paths(optfn.mean_of_params(inside, start=3), START, GRADS)[1]
    for name in START:
        count = np.arange(1, STEPS - 2).reshape(-1, *[1] * START[name].ndim)
        mean = np.cumsum(own[name][3:], axis=0) / count
        np.testing.assert_allclose(found[name][3:], mean, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found[name][:3], own[name][:3], rtol=1e-11, atol=1e-12)


# Numbers.


def test_decays_starts_and_turns_are_swept_together(x64):
    def last(decay, start, every):
        tx = optfn.ema_of_params(SGD, decay, start=start, every=every)
        return paths(tx, START, GRADS)[1]["w"][-1]

    numbers = np.array([0.5, 0.9]), np.array([0.0, 8.0]), np.array([1.0, 3.0])
    many = jax.vmap(last)(*map(jnp.asarray, numbers))
    for i, (decay, start, every) in enumerate(zip(*numbers, strict=True)):
        turns = np.arange(start + every, STEPS + 1, every).astype(int)
        weights = decay ** np.arange(len(turns))[::-1]
        wanted = np.tensordot(weights / weights.sum(), way("w")[turns - 1], 1)
        np.testing.assert_allclose(many[i], wanted, rtol=1e-11, atol=1e-12)


def test_names_of_its_numbers():
    tx = optfn.ema_of_params(optfn.adam(1e-3), schedules.ema_warmup(0.999))
    state = tx.init(START)
    found = optfn.hyperparameters(tx, state)
    assert found["learning_rate"] == np.float32(1e-3)
    assert found["ema_of_params.decay"] == np.float32(0.1)
    slower = optfn.replace(tx, **{"decay.end_value": 0.9999})
    assert jax.tree.structure(slower) == jax.tree.structure(tx)


def test_a_decay_of_one_never_starts():
    params, averages = paths(optfn.ema_of_params(SGD, 1.0), START, GRADS)
    jax.tree.map(np.testing.assert_array_equal, averages, params)


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"ema_of_params\(decay=...\) must be from 0 to 1, found 2"
    ):
        optfn.ema_of_params(SGD, 2.0)
    for make in (optfn.mean_of_params, lambda tx, **kwargs: optfn.ema_of_params(tx, 0.9, **kwargs)):
        with pytest.raises(ValueError, match=r"of_params\(every=...\) must be at least 1, found 0"):
            make(SGD, every=0)
        with pytest.raises(
            ValueError, match=r"of_params\(start=...\) must be at least 0, found -5"
        ):
            make(SGD, start=-5)
        with pytest.raises(
            TypeError, match=r"of_params\(transform=...\) must be an optfn transform"
        ):
            make(optax.sgd)
        tx = make(SGD)
        with pytest.raises(ValueError, match="of_params needs the params"):
            tx.update(START, tx.init(START))
