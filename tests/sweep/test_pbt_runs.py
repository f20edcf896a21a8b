"""A population in the engine: what it found is a schedule, which alone gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules, sweep

CURVATURE = np.float32([1.0, 10.0])
SPACE = {
    "learning_rate": sweep.LogUniform(1e-4, 2.0),
    "b1": sweep.OneMinusLogUniform(0.02, 0.5),
    "b2": [0.9, 0.99, 0.999],
}


def height(params):
    return jnp.sum(CURVATURE * params**2) / 2


def noisy(params, batch, *, key):
    return height(params) + 0.1 * jnp.dot(jax.random.normal(key, (2,)), params)


TASK = sweep.Task(
    lambda key: 1 + 0.1 * jax.random.normal(key, (2,)),
    noisy,
    evaluate=lambda params: {"height": height(params)},
    minimize="height",
)


def run(factory, space, mode="vmap", **kwargs):
    return sweep.run(TASK, factory, space, steps=60, segment=5, mode=mode, max_loss=30.0, **kwargs)


def followed(line, name):
    """A hyperparameter along a line, as a schedule."""
    (_, first), *others = [(start, point[name]) for start, point in line]
    pieces = [schedules.constant(value) for value in (first, *(v for _, v in others))]
    return schedules.join(pieces, [start for start, _ in others]) if others else first


@pytest.mark.parametrize("mode", ["vmap", "map", "loop"])
def test_a_member_is_the_run_by_the_schedule_it_found(mode):
    population = run(optfn.adam, SPACE, mode, trials=8, policy=sweep.pbt(every=10), seeds=2)
    best = population.best()
    line = population.lines[best.trial]
    assert len(line) > 1
    tx = optfn.adam(**{name: followed(line, name) for name in SPACE})
    alone = run(lambda: tx, {}, mode, trials=1, policy=sweep.run_all(), seeds=2)
    # The same program but for the reading of the schedules, which is exact.
    np.testing.assert_array_equal(alone.scores[0], population.scores[best.trial])


def test_the_past_of_members_and_whom_they_copied_make_their_lines():
    population = run(optfn.adam, SPACE, trials=8, policy=sweep.pbt(every=10))
    rounds = (10, 20, 30, 40, 50)
    assert population.sources.shape == (5, 8)
    for member, line in enumerate(population.lines):
        copied = population.sources[:, member] != member
        starts = [start for start, _ in population.past[member]]
        assert starts == [0, *np.array(rounds)[copied]]
        family = sweep.policies.population.lineage(population.sources, rounds, member)
        pasts = {a: dict(population.past[a]) for _, a in family}
        assert [(start, pasts[ancestor][start]) for start, ancestor in family] == line
