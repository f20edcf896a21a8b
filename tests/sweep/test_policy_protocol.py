"""Policies of a user's own: what they are asked, and what becomes of their verdicts."""

import dataclasses
import re

import numpy as np
import pytest
from problem import RATE, RATES, run, same

import optfn
from optfn import sweep
from optfn.sweep.policies.policy import ranks

CONTINUE, STOP, PAUSE = sweep.Verdict.CONTINUE, sweep.Verdict.STOP, sweep.Verdict.PAUSE
SPACE = RATE | {"b1": sweep.Uniform(0.5, 0.95), "b2": [0.9, 0.99, 0.999]}


class by_function(sweep.Policy):
    """Every ten steps a function `(scores, standing) -> verdicts` decides; it notes its calls."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def rungs(self, steps, segment):
        return tuple(range(10, steps, 10))

    def judge(self, scores, standing):
        self.asked.append([(trial, rung, scores.table[trial, rung]) for trial, rung in standing])
        return self.function(scores, standing)


class population(by_function):
    needs_all_trials = True
    depends_on_trial_count = True


def everyone(verdict):
    return lambda scores, standing: [verdict] * len(standing)


def test_a_stopping_rule_written_anew_is_the_librarys():
    def rule(scores, standing):
        columns = [(trial, scores.table[:, rung]) for trial, rung in standing]
        kept = [max(1, int(np.sum(~np.isnan(x))) // 3) for _, x in columns]
        stays = [
            np.isfinite(x[trial]) and ranks(x)[trial] < k
            for (trial, x), k in zip(columns, kept, strict=True)
        ]
        return [CONTINUE if s else STOP for s in stays]

    settings = {"trials": 30, "lanes": 8, "steps": 40, "keep_best": 2}
    theirs = by_function(rule)
    theirs.rungs = sweep.asha(first=5).rungs
    same(run(RATE, policy=theirs, **settings), run(RATE, policy=sweep.asha(first=5), **settings))


@dataclasses.dataclass(frozen=True)
class pbt_anew(sweep.Policy):
    """Population-based training by the numbers of the library and the verdicts of a user."""

    needs_all_trials = True
    inner = sweep.pbt(every=10)

    def rungs(self, steps, segment):
        return self.inner.rungs(steps, segment)

    def start(self, plan, trials):
        inner, names = self.inner, plan.searched

        class judge:
            @staticmethod
            def judge(scores, standing):
                rung = standing[0][1]
                copies = inner.exploit(scores.table[:, rung], len(names), plan.seed, rung)
                return [
                    sweep.Copy(
                        int(copies.source[i]),
                        {n for n, anew in zip(names, copies.resampled[i], strict=True) if anew},
                        dict(zip(names, copies.factor[i], strict=True)),
                    )
                    if copies.source[i] != i
                    else CONTINUE
                    for i, _ in standing
                ]

        return judge


def test_a_population_rule_written_anew_is_the_librarys():
    settings = {"trials": 8, "steps": 40, "keep_best": 2}
    ours = run(SPACE, policy=sweep.pbt(every=10), **settings)
    theirs = run(SPACE, policy=pbt_anew(), **settings)
    same(theirs, ours)
    assert theirs.hyperparameter_history == ours.hyperparameter_history
    np.testing.assert_array_equal(theirs.copied_from, ours.copied_from)
    assert (ours.copied_from != np.arange(8)).any()


def test_a_trial_that_diverged_stands_at_its_next_rung_at_once():
    policy = by_function(
        lambda scores, standing: [
            CONTINUE if np.isfinite(scores.table[at]) else STOP for at in standing
        ]
    )
    space = {"learning_rate": [0.01, 1e30, 0.02]}
    result = run(space, optimizer=optfn.sgd, search=sweep.grid(), policy=policy)
    assert list(result.status) == ["ok", "diverged", "ok"]
    assert policy.asked[0] == [(1, 0, np.inf)]  # after five steps, of ten to the rung
    assert [[trial for trial, *_ in asked] for asked in policy.asked[1:]] == [[0, 2]]


@pytest.mark.parametrize("verdict", [CONTINUE, PAUSE, STOP])
@pytest.mark.parametrize("rates", [[0.01, 1e30], [1e30, 1e30]])
def test_a_trial_that_diverged_is_judged_once_and_ends_whatever_the_verdict(verdict, rates):
    def rule(scores, standing):
        return [CONTINUE if np.isfinite(scores.table[at]) else verdict for at in standing]

    policy = by_function(rule)
    settings = {"optimizer": optfn.sgd, "search": sweep.grid(), "steps": 40}
    result = run({"learning_rate": rates}, policy=policy, **settings)
    lost = [rate == 1e30 for rate in rates]
    assert list(result.status == "diverged") == lost
    np.testing.assert_array_equal(result.steps, [1 if x else 40 for x in lost])
    stood = [(trial, rung) for asked in policy.asked for trial, rung, x in asked if np.isinf(x)]
    assert stood == [(i, 0) for i, x in enumerate(lost) if x]


def test_a_pause_gives_the_lanes_to_others():
    def rule(scores, standing):
        arrived = np.sum(~np.isnan(scores.table[:, 0]))
        return [CONTINUE if arrived == 20 else PAUSE for _ in standing]

    policy = by_function(rule)
    result = run(RATE, trials=20, lanes=8, policy=policy, keep_best=3)
    assert (result.status == "ok").all()
    waited = sum(np.ptp(segments) >= len(segments) for segments in result.segments)
    assert waited == 16  # all but the last, which found everybody there
    same_points = run(RATE, trials=20, lanes=8, keep_best=3)
    np.testing.assert_array_equal(result.scores, same_points.scores)


def test_a_population_is_judged_once_all_have_arrived():
    policy = population(everyone(CONTINUE))
    space = {"learning_rate": [0.01, 1e30, 0.02, 0.03]}
    result = run(
        space, optimizer=optfn.sgd, search=sweep.grid(), steps=40, policy=policy, max_loss=1e9
    )
    assert list(result.status) == ["ok", "diverged", "ok", "ok"]
    assert [sorted(asked)[1][2] for asked in policy.asked] == [np.inf] * 3
    assert [{(trial, rung) for trial, rung, _ in asked} for asked in policy.asked] == [
        {(trial, rung) for trial in range(4)} for rung in range(3)
    ]
    assert result.copied_from.tolist() == [[0, 1, 2, 3]] * 3


def test_a_copy_takes_everything_and_changes_what_it_names():
    def rule(scores, standing):
        copy = sweep.Copy(2, resampled={"b1"}, factor={"learning_rate": 0.5})
        return [copy if trial == 5 else CONTINUE for trial, _ in standing]

    result = run(SPACE, trials=8, policy=population(rule))
    (first, before), (step, point) = result.hyperparameter_history[5]
    assert (first, before) == (0, result.points[2]) and step == 10
    assert point == result.points[5]
    wanted = max(before["learning_rate"] / 2, RATES.low)
    np.testing.assert_allclose(point["learning_rate"], wanted, rtol=1e-6)
    assert point["b1"] not in (before["b1"], result.own_history[5][0][1]["b1"])
    assert point["b2"] == before["b2"]
    np.testing.assert_array_equal(result.copied_from, [[0, 1, 2, 3, 4, 2, 6, 7]])
    np.testing.assert_allclose(result.rerun(5).score, result.trial(5).score, rtol=1e-4)


def test_a_copy_of_oneself_moves_ones_own_hyperparameters():
    def rule(scores, standing):
        return [sweep.Copy(trial, factor={"learning_rate": 0.5}) for trial, _ in standing]

    result = run(RATE, trials=8, policy=population(rule))
    for history in result.hyperparameter_history:
        (_, before), (_, after) = history
        wanted = max(before["learning_rate"] / 2, RATES.low)
        np.testing.assert_allclose(after["learning_rate"], wanted, rtol=1e-6)


def test_a_population_may_stop_members():
    def rule(scores, standing):
        copies = {7: sweep.Copy(0)}
        return [STOP if trial < 4 else copies.get(trial, CONTINUE) for trial, _ in standing]

    result = run(RATE, trials=8, policy=population(rule))
    assert list(result.status) == ["pruned"] * 4 + ["ok"] * 4
    assert result.points[7] == result.points[0]  # as it stood before it was stopped


@dataclasses.dataclass(frozen=True)
class counting(sweep.Policy):
    """One that says it depends on how many trials there are."""

    depends_on_trial_count = True

    def rungs(self, steps, segment):
        return (10,)

    def judge(self, scores, standing):
        return [CONTINUE for _ in standing]


def test_a_checkpoint_knows_what_a_policy_declares(tmp_path):
    run(RATE, trials=8, policy=counting(), checkpoint=tmp_path)
    assert len(run(RATE, trials=8, policy=counting(), checkpoint=tmp_path)) == 8
    with pytest.raises(ValueError, match="differs in trials 8, now 12"):
        run(RATE, trials=12, lanes=8, policy=counting(), checkpoint=tmp_path)


NO_VERDICTS = {
    "no verdict": (by_function(everyone(True)), r"by_function.judge\(...\) must give a Verdict"),
    "too few": (
        by_function(lambda scores, standing: []),
        r"must give a list with a verdict for each of the 8 trials, in order, found \[\]",
    ),
    "one for all": (by_function(lambda scores, standing: STOP), "found <Verdict.STOP: 'stop'>"),
    "a lone copy": (by_function(everyone(sweep.Copy(0))), "must declare needs_all_trials = True"),
    "a pause": (population(everyone(PAUSE)), "gave PAUSE, but it declares needs_all_trials"),
    "no such trial": (population(everyone(sweep.Copy(9))), "lets trial 0 copy trial 9, which is"),
    "no such name": (
        population(everyone(sweep.Copy(0, factor={"rate": 2.0}))),
        r"gave a Copy that names 'rate', which is not searched; there are: learning_rate",
    ),
}


@pytest.mark.parametrize("name", NO_VERDICTS)
def test_what_is_no_verdict_is_refused(name):
    policy, words = NO_VERDICTS[name]
    with pytest.raises((TypeError, ValueError), match=words):
        run(RATE, trials=8, policy=policy)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"source": "a"}, "source=...) must be the number of a trial, found 'a'"),
        ({"source": -1}, "source=...) must be the number of a trial, found -1"),
        (
            {"source": 0, "resampled": "b1"},
            "resampled=...) must be a collection of names, found 'b",
        ),
        ({"source": 0, "factor": 1.2}, "factor=...) must be a dict from names to numbers, found 1"),
    ],
)
def test_a_copy_of_other_things_is_refused(arguments, words):
    with pytest.raises(TypeError, match=re.escape(f"Copy({words}")):
        sweep.Copy(**arguments)


@pytest.mark.parametrize("rungs", [(20,), (10, 5), (5, 5), (7,), (0, 5), (5.5,)])
def test_rungs_at_which_nobody_is_judged_are_refused(rungs):
    policy = by_function(everyone(CONTINUE))
    policy.rungs = lambda steps, segment: rungs
    with pytest.raises(ValueError, match=r"by_function.rungs\(...\) must give rising multiples of"):
        run(RATE, trials=8, policy=policy)


def test_a_policy_without_its_methods_says_which():
    class nothing(sweep.Policy):
        pass

    with pytest.raises(NotImplementedError, match=r"nothing must define rungs\(steps, segment\)"):
        run(RATE, trials=8, policy=nothing())
    with pytest.raises(NotImplementedError, match=r"nothing must define judge\(scores, standing\)"):
        nothing().judge(None, [])
