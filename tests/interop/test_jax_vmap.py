"""`jax.vmap` over optimizers: many values, one program, and a population that learns its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "b": np.ones(2, np.float32)}
CURVATURES = {"w": np.float32([[1, 10], [2, 5], [0.5, 3]]), "b": np.float32([4, 1])}


def loss(params):
    terms = jax.tree.map(lambda p, c: 0.5 * jnp.sum(c * jnp.square(p)), params, CURVATURES)
    return sum(jax.tree.leaves(terms))


def advance(tx, params, state, steps=6):
    def step(carry, _):
        params, state = carry
        return optfn.step(tx, params, jax.grad(loss)(params), state), None

    return jax.lax.scan(step, (params, state), length=steps)[0]


def train(tx, params):
    params, _ = advance(tx, params, tx.init(params))
    return params


def assert_equals_loop(tx, alone):
    """The program for all optimizers in `tx` against one run of each."""
    together = jax.jit(jax.vmap(train, in_axes=(optfn.in_axes(tx), None)))(tx, PARAMS)
    train_one = jax.jit(train)
    ends = [train_one(one, PARAMS) for one in alone]
    expected = jax.tree.map(lambda *xs: np.stack(xs), *ends)
    jax.tree.map(
        # The same operations, in another vectorisation.
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        together,
        expected,
    )
    # Otherwise equality would say nothing about who is who.
    assert len({float(loss(end)) for end in ends}) == len(alone)


# Optimizers that differ in every number that matters to them.
SWEEPS = {
    "adamw": [
        optfn.adamw(rate, b1, b2, eps, weight_decay=decay)
        for rate, b1, b2, eps, decay in [
            (0.1, 0.9, 0.999, 1e-8, 0.0),
            (0.02, 0.5, 0.9, 1e-3, 0.1),
            (0.5, 0.0, 0.99, 1.0, 1.0),
        ]
    ],
    "the leaves of a schedule": [
        optfn.adam(schedules.warmup_cosine(*values, init_value=start, end_value=end))
        for *values, start, end in [(0.1, 0, 10, 0, 0), (0.1, 3, 4, 0, 0), (0.3, 2, 6, 0.2, 0.1)]
    ],
    "counts in a schedule": [
        optfn.sgd(schedules.per_epoch(schedules.piecewise_constant([0.05, 0.01], [at]), per))
        for at, per in [(1, 2), (2, 2), (1, 1)]
    ],
    "schedules in a schedule": [
        optfn.sgd(schedules.join([schedules.constant(rate), schedules.linear(rate, 0, 3)], [start]))
        for rate, start in [(0.05, 2), (0.02, 2), (0.05, 4)]
    ],
    "a partition": [
        optfn.chain(
            optfn.clip_by_global_norm(norm),
            optfn.partition(
                {"w": optfn.rmsprop(rate), "b": optfn.sgd(rate / 2, momentum=0.5)},
                {"w": "w", "b": "b"},
            ),
        )
        for norm, rate in [(1.0, 0.1), (10.0, 0.1), (10.0, 0.01)]
    ],
}


@pytest.mark.parametrize("optimizers", SWEEPS.values(), ids=SWEEPS)
def test_stacked_optimizers_equal_a_loop(optimizers):
    assert_equals_loop(optfn.stack(optimizers), optimizers)


def test_one_number_is_swept_and_the_others_are_shared():
    rates = np.float32([0.01, 0.1, 0.3])
    alone = [optfn.adamw(float(rate)) for rate in rates]
    assert_equals_loop(optfn.adamw(rates), alone)
    assert_equals_loop(optfn.replace(optfn.adamw(0.1), learning_rate=rates), alone)


def test_a_swept_number_beside_a_schedule_of_arrays():
    """The array of a schedule's values is no batch."""

    def tx(decay):
        rate = schedules.piecewise_constant(jnp.asarray([0.1, 0.02]), jnp.asarray([3.0]))
        return optfn.adamw(rate, weight_decay=decay)

    decays = np.float32([0.0, 0.5])
    assert_equals_loop(tx(decays), [tx(decay) for decay in decays])


@pytest.mark.parametrize("optimizers", SWEEPS.values(), ids=SWEEPS)
def test_unstack_is_the_inverse_of_stack(optimizers):
    again = optfn.unstack(optfn.stack(optimizers))
    assert len(again) == len(optimizers)
    for one, other in zip(again, optimizers, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        np.testing.assert_array_equal(
            jax.tree.leaves(one), np.float32(jax.tree.leaves(other)), strict=False
        )


def test_unstack_after_a_sweep_gives_the_shared_numbers_to_each():
    first, second = optfn.unstack(optfn.adamw(np.float32([0.1, 0.2]), b1=0.8))
    assert (first.stages[0].b1, second.stages[0].b1) == (0.8, 0.8)
    assert [float(tx.stages[-1].learning_rate) for tx in (first, second)] == [
        np.float32(0.1),
        np.float32(0.2),
    ]


def test_optimizers_of_different_parts_do_not_stack():
    with pytest.raises(ValueError, match="optimizer 1 is built of other parts"):
        optfn.stack([optfn.adam(0.1), optfn.sgd(0.1)])


# Population training: the worst member goes on from where the best stands, at half its rate.

RATES = [0.3, 0.25, 0.15, 0.01]
GENERATIONS = 4


@jax.jit
def population_training(population, params, state):
    size = len(RATES)

    def generation(carry, _):
        population, params, state = carry
        axes = (optfn.in_axes(population), 0, 0)
        params, state = jax.vmap(advance, axes)(population, params, state)
        losses = jax.vmap(loss)(params)

        best, worst = jnp.argmin(losses), jnp.argmax(losses)
        source = jnp.arange(size).at[worst].set(best)
        population, params, state = jax.tree.map(lambda x: x[source], (population, params, state))
        rates = optfn.hyperparameters(population, state)["learning_rate"]
        population = optfn.replace(population, learning_rate=rates.at[worst].multiply(0.5))
        return (population, params, state), losses

    return jax.lax.scan(generation, (population, params, state), length=GENERATIONS)


def population_training_by_hand(members):
    advance_one = jax.jit(advance)
    runs = [(tx, PARAMS, tx.init(PARAMS)) for tx in members]
    history = []
    for _ in range(GENERATIONS):
        runs = [(tx, *advance_one(tx, params, state)) for tx, params, state in runs]
        losses = [float(loss(params)) for _, params, _ in runs]
        history.append(losses)
        tx, params, state = runs[int(np.argmin(losses))]
        rate = optfn.hyperparameters(tx, state)["learning_rate"]
        worst = int(np.argmax(losses))
        runs[worst] = (optfn.replace(tx, learning_rate=rate / 2), params, state)
    return [tx for tx, _, _ in runs], history


def test_population_training_in_one_program_equals_the_same_by_hand():
    members = [optfn.sgd(rate, momentum=0.5) for rate in RATES]
    by_hand, history = population_training_by_hand(members)

    runs = [(PARAMS, tx.init(PARAMS)) for tx in members]
    params, state = jax.tree.map(lambda *xs: jnp.stack(xs), *runs)
    (population, _, _), losses = population_training(optfn.stack(members), params, state)

    np.testing.assert_allclose(losses, history, rtol=1e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), population, optfn.stack(by_hand)
    )
    assert losses[-1].max() < losses[0].min()
