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
    return height(params) + 0.2 * jnp.dot(jax.random.uniform(key, (2,)) - 0.5, params)


TASK = sweep.Task(
    np.float32([1.1, 0.9]),
    noisy,
    evaluate=lambda params: {"height": height(params)},
    minimize="height",
)


def run(factory, space, mode="vmap", **kwargs):
    kwargs = {"steps": 60, "segment": 5, "mode": mode, "max_loss": 30.0} | kwargs
    return sweep.run(TASK, factory, space, **kwargs)


def followed(line, name):
    """A hyperparameter along a line, as a schedule."""
    (_, first), *others = [(start, point[name]) for start, point in line]
    pieces = [schedules.constant(value) for value in (first, *(v for _, v in others))]
    return schedules.join(pieces, [start for start, _ in others]) if others else first


@pytest.mark.parametrize("mode", ["vmap", "map", "loop"])
def test_a_member_is_the_run_by_the_schedule_it_found(mode):
    kwargs = {"seeds": 2, "steps": 30}
    population = run(optfn.adam, SPACE, mode, trials=8, policy=sweep.pbt(every=5), **kwargs)
    best = population.best()
    line = population.hyperparameter_history[best.trial]
    assert len(line) > 1
    tx = optfn.adam(**{name: followed(line, name) for name in SPACE})
    alone = run(lambda: tx, {}, mode, trials=1, policy=sweep.run_all(), **kwargs)
    # The reading of the schedules is exact, but makes it another program, which rounds otherwise.
    np.testing.assert_allclose(alone.scores[0], population.scores[best.trial], rtol=2e-6)


def test_the_past_of_members_and_whom_they_copied_make_their_lines():
    population = run(optfn.adam, SPACE, trials=8, policy=sweep.pbt(every=10))
    rounds = (10, 20, 30, 40, 50)
    assert population.copied_from.shape == (5, 8)
    for member, line in enumerate(population.hyperparameter_history):
        copied = population.copied_from[:, member] != member
        starts = [start for start, _ in population.own_history[member]]
        assert starts == [0, *np.array(rounds)[copied]]
        family = sweep.policies.pbt.lineage(population.copied_from, rounds, member)
        pasts = {a: dict(population.own_history[a]) for _, a in family}
        assert [(start, pasts[ancestor][start]) for start, ancestor in family] == line


def every_fourth(learning_rate):
    """An optimizer that counts its own steps."""
    return optfn.accumulate(optfn.momentum(learning_rate), 4)


def scheduled(peak, share):
    """Hyperparameters that are numbers of a schedule, whose state is an average's too."""
    rate = schedules.warmup_cosine(peak, share * 60, 60)
    return optfn.ema_of_params(optfn.adam(rate), 0.9)


SHARE = {"peak": sweep.LogUniform(1e-3, 1.0), "share": sweep.Uniform(0.05, 0.5)}


@pytest.mark.parametrize(
    "factory, space",
    [(every_fourth, {"learning_rate": SPACE["learning_rate"]}), (scheduled, SHARE)],
)
def test_the_best_optimizer_alone_comes_to_the_score_that_was_found(factory, space):
    population = run(factory, space, trials=8, policy=sweep.pbt(every=10), keep_best=8)
    copied = [member for member in population.top(8) if len(member.hyperparameter_history) > 1]
    assert len(copied) >= 4
    for member in copied[:2]:
        alone = run(lambda member=member: member.optimizer, {}, trials=1, policy=sweep.run_all())
        again = population.rerun(member.trial)
        # The same operations, compiled with other neighbours.
        np.testing.assert_allclose(alone.best().score, member.score, rtol=1e-4)
        np.testing.assert_allclose(again.score, member.score, rtol=1e-4)
        assert (
            again.values == member.values
            and again.hyperparameter_history == member.hyperparameter_history
        )


def test_the_numbers_of_the_best_optimizer_are_those_of_the_step():
    population = run(optfn.adam, SPACE, trials=8, policy=sweep.pbt(every=10), keep_best=8)
    best = next(member for member in population.top(8) if len(member.hyperparameter_history) > 1)
    tx = best.optimizer
    state = tx.init(best.params)

    @jax.jit
    def told(step):
        return optfn.hyperparameters(tx, state._replace(step=step))

    for start, point in best.hyperparameter_history:
        here = told(np.int32(start))
        assert {name: np.float32(here[name]) for name in point} == {
            name: np.float32(value) for name, value in point.items()
        }
    assert jax.tree.structure(state) == jax.tree.structure(optfn.adam(0.1).init(best.params))


def test_confirmation_trains_the_line():
    settings = {"trials": 8, "policy": sweep.pbt(every=10), "keep_best": 8}
    found = run(optfn.adam, SPACE, confirm=sweep.Confirm(top=2, seeds=2), **settings)
    assert any(len(member.hyperparameter_history) > 1 for member in found.top(2))
    for member in found.top(2):
        alone = run(lambda member=member: member.optimizer, {}, trials=1, policy=sweep.run_all())
        fresh = alone.rerun(0, seeds=[1, 2])
        np.testing.assert_allclose(fresh.score, member.score, rtol=1e-4)


def test_members_of_other_structure_are_refused_before_training():
    def factory(learning_rate, decay):
        return (
            optfn.adamw(learning_rate, weight_decay=decay) if decay else optfn.adam(learning_rate)
        )

    space = {"learning_rate": SPACE["learning_rate"], "decay": [0.0, 0.1]}
    seen = []
    with pytest.raises(ValueError, match="pbt copies the state of one member to another, but the"):
        run(factory, space, trials=8, policy=sweep.pbt(every=10), progress=seen.append)
    assert not seen


class Recorded:
    """A search that keeps what it is told."""

    def start(self, space, trials, seed):
        session = sweep.random().start(space, trials, seed)
        self.told = {}
        session.tell = lambda index, *told: self.told.update({index: told})
        return session


def test_the_search_is_told_of_a_point_for_as_long_as_it_was_trained():
    search = Recorded()
    population = run(optfn.adam, SPACE, trials=8, policy=sweep.pbt(every=10), search=search)
    for number, (score, status, reports) in search.told.items():
        past, curve = population.own_history[number], population.curves["height"][number]
        until = past[1][0] if len(past) > 1 else 60
        lost = not np.isfinite(curve[until // 5 - 1])
        assert status == ("ok" if until == 60 else "diverged" if lost else "pruned")
        np.testing.assert_array_equal(reports, [(5 * (i + 1), curve[i]) for i in range(until // 5)])
        np.testing.assert_array_equal(score, curve[until // 5 - 1])
