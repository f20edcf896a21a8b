"""Policies over lanes, on arrays alone: against their definitions, in a loop without training."""

import dataclasses
import sys
from copy import copy

import hypothesis
import numpy as np
import optuna
import pytest
from hypothesis import strategies as st

from optfn.sweep.policies.asha import asha
from optfn.sweep.policies.from_optuna import from_optuna
from optfn.sweep.policies.halving import brackets, hyperband, successive_halving
from optfn.sweep.policies.pbt import lineage, pbt
from optfn.sweep.policies.policy import Scores, Verdict, run_all

CONTINUE, STOP, PAUSE = Verdict.CONTINUE, Verdict.STOP, Verdict.PAUSE
quick = hypothesis.settings(max_examples=60, deadline=None)


@dataclasses.dataclass
class Run:
    """What a sweep without training left behind; `occupied` are lane-steps, idle lanes included."""

    scores: Scores
    occupied: int
    most_paused: int
    stood: list  # for each segment, a dict of (trial, rung) and the verdict


def sweep(policy, curves, lanes, segment=1, restart=False, rng=None, sign=1):
    """Lanes, a queue and a pool of those that wait, around a policy.

    `curves` has the score of each trial after each segment, the lower the better; from its first
    that is not finite on, a trial has diverged.
    """
    trials, count = curves.shape
    steps = count * segment
    scores = Scores.start(policy.rungs(steps, segment), steps, trials, sign)
    queue, ready, waiting, alive = list(range(trials)), [], {}, {}
    age = np.zeros(trials, int)
    run = Run(scores, 0, 0, [])
    while queue or ready or waiting or alive:
        while len(alive) < lanes and (ready or queue):
            alive[(ready or queue).pop(0)] = True
        assert alive, "nobody runs, but some wait"
        standing, ended = list(waiting.items()), []
        lanes_now = list(alive)
        if rng is not None:
            rng.shuffle(lanes_now)
        for trial in lanes_now:
            age[trial] += segment
            score = curves[trial, age[trial] // segment - 1]
            diverged = not np.isfinite(score)
            rung = scores.record(trial, int(age[trial]), score, len(run.stood), diverged=diverged)
            if rung is not None:
                standing.append((trial, rung))
            if diverged or age[trial] == steps:
                ended.append(trial)
        run.occupied += lanes * segment
        verdicts = policy.judge(scores, standing)
        run.stood.append(dict(zip(standing, verdicts, strict=True)))
        for (trial, rung), verdict in run.stood[-1].items():
            if verdict is not CONTINUE:
                alive.pop(trial, None)
            if trial in waiting and verdict is not PAUSE:
                del waiting[trial]
                ready += [trial] if verdict is CONTINUE else []
            elif verdict is PAUSE:
                waiting[trial] = rung
        for trial in ended:
            alive.pop(trial, None)
        run.most_paused = max(run.most_paused, len(waiting) + len(ready))
        if restart:  # nothing but data goes on
            policy, scores = restart(), Scores(*map(copy, scores))
            run.scores = scores
    return run


def random_curves(seed, trials, segments, diverging=0.0):
    """A level per trial, a decay, and noise; some end in infinities."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(trials, 1))
    rate = rng.uniform(0.1, 2.0, size=(trials, 1))
    curves = level + np.exp(-rate * np.arange(segments)) + 0.1 * rng.normal(size=(trials, segments))
    when = np.where(rng.random(trials) < diverging, rng.integers(0, segments, trials), segments)
    return np.where(np.arange(segments) >= when[:, None], np.inf, curves)


def reached(run, rung):
    """The trials with a finite score there."""
    return set(np.flatnonzero(np.isfinite(run.scores.table[:, rung])).tolist())


def went(run, rung):
    """The trials that were told to go on from there."""
    return {
        trial
        for stood in run.stood
        for (trial, at), verdict in stood.items()
        if at == rung and verdict is CONTINUE
    }


def scores_of(column):
    """Scores at a single rung, recorded in one segment."""
    table = np.stack([column, np.full(len(column), np.nan)], axis=1)
    return Scores((1, 2), table, np.where(np.isnan(table), -1, 0))


def test_scores_are_recorded_at_rungs_and_at_the_end():
    scores = Scores.start((10, 30), 50, trials=2)
    assert scores.record(0, 5, 9.0, 0) is None
    assert scores.record(0, 10, 1.0, 1) == 0
    assert scores.record(0, 30, np.nan, 2) == 1
    assert scores.record(1, 5, 2.0, 0, diverged=True) == 0
    assert scores.record(0, 50, 0.5, 4) is None
    assert scores.record(0, 60, 0.5, 5) is None
    np.testing.assert_array_equal(scores.table, [[1, np.inf, 0.5], [np.inf, np.nan, np.nan]])
    np.testing.assert_array_equal(scores.segments, [[1, 2, 4], [0, -1, -1]])


@pytest.mark.parametrize(
    "policy, steps, segment, rungs",
    [
        (run_all(), 100, 10, ()),
        (asha(100, 3), 1000, 100, (100, 300)),
        (asha(100, 3), 1350, 100, (100, 300, 900)),
        (asha(100, 3), 120, 10, (100,)),
        (asha(100, 3), 900, 100, (100, 300)),
        (asha(30, 3), 1000, 50, (50, 100, 300)),
        (asha(1, 2), 100, 30, (30, 60)),  # 1 to 16 fall together
        (successive_halving(10, 2), 100, 10, (10, 20, 40)),
        (hyperband(1), 81, 1, (1, 3, 9, 27)),
        (hyperband(100), 1000, 100, (100, 300)),
        (hyperband(70), 1000, 100, (100, 300)),
        (hyperband(30), 1000, 10, (30, 90, 330)),
        (pbt(25), 100, 10, (30, 60, 90)),
        (from_optuna(optuna.pruners.NopPruner(), every=1), 50, 20, (20, 40)),
        (from_optuna(optuna.pruners.NopPruner(), every=30), 100, 20, (40, 80)),
    ],
)
def test_rungs_are_whole_segments_below_the_end(policy, steps, segment, rungs):
    assert policy.rungs(steps, segment) == rungs


def test_nobody_is_judged_where_all_run():
    run = sweep(run_all(), random_curves(0, 20, 5), lanes=8)
    assert len(reached(run, 0)) == 20 and run.occupied == 3 * 8 * 5


@quick
@hypothesis.given(
    st.lists(
        st.one_of(st.floats(allow_nan=False, width=16), st.just(np.inf), st.just(np.nan)),
        min_size=1,
        max_size=30,
    ),
    st.integers(2, 5),
)
def test_asha_keeps_who_is_among_the_best(column, eta):
    standing = [(i, 0) for i, score in enumerate(column) if not np.isnan(score)]
    verdicts = asha(1, eta).judge(scores_of(column), standing)
    finite = [(score, i) for i, score in enumerate(column) if np.isfinite(score)]
    best = sorted(finite)[: max(1, len(standing) // eta)]
    assert {i for (i, _), v in zip(standing, verdicts, strict=True) if v is CONTINUE} == {
        i for _, i in best
    }
    assert PAUSE not in verdicts


def test_asha_gives_ties_to_the_first():
    verdicts = asha(1, 2).judge(scores_of([1.0, 1.0, 1.0, 1.0]), [(i, 0) for i in (3, 2, 1, 0)])
    assert verdicts == [STOP, STOP, CONTINUE, CONTINUE]


@quick
@hypothesis.given(st.integers(0, 99), st.integers(1, 20), st.integers(2, 4))
def test_asha_keeps_one_at_each_rung_and_none_that_diverged(seed, lanes, eta):
    curves = random_curves(seed, 40, 30, diverging=0.2)
    run = sweep(asha(1, eta), curves, lanes)
    table = run.scores.table
    for rung in range(table.shape[1] - 1):
        arrived = reached(run, rung)
        assert went(run, rung) <= arrived
        if arrived:
            assert min(arrived, key=lambda i: (table[i, rung], i)) in went(run, rung)
    assert run.most_paused == 0


@pytest.mark.parametrize("order", range(5))
def test_asha_with_eta_3_spends_less_than_half(order):
    trials, segments, lanes = 256, 10, 32
    curves = np.random.default_rng(order).permutation(random_curves(0, trials, segments, 0.1))
    run = sweep(asha(100, 3), curves, lanes, segment=100)
    assert run.occupied <= 0.45 * trials * segments * 100
    final = np.sort(curves[:, -1])
    assert np.nanmin(run.scores.table[:, -1]) <= final[7]  # the best 3%


def halved(curves, members, ages, eta):
    """By the definition: the trials that go on from each rung of a bracket."""
    size, gone = len(members), []
    for i, age in enumerate(ages):
        alive = [m for m in members if np.isfinite(curves[m, :age]).all()]
        alive.sort(key=lambda m: (curves[m, age - 1], m))
        members = alive[: max(1, size // eta ** (i + 1))]
        gone.append(set(members))
    return gone


@quick
@hypothesis.given(
    st.integers(0, 999),
    st.integers(1, 50),
    st.integers(1, 12),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_successive_halving_is_that_of_a_barrier(seed, trials, lanes, eta, diverging, bracket):
    curves = random_curves(seed, trials, 10, diverging)
    policy = successive_halving(1, eta, bracket)
    rungs = policy.rungs(10, 1)
    run = sweep(policy, curves, lanes)
    size = bracket or trials
    groups = [list(range(i, min(i + size, trials))) for i in range(0, trials, size)]
    wanted = [halved(curves, members, rungs, eta) for members in groups]
    for rung in range(len(rungs)):
        assert went(run, rung) == set.union(*(x[rung] for x in wanted))
    assert run.most_paused <= policy.most_paused(len(rungs), trials)


def test_successive_halving_waits_only_where_it_must():
    policy = successive_halving(1, 2)
    scores = scores_of([4.0, 3.0, 2.0, np.nan, np.inf, np.nan])  # three go on, two are missing
    verdicts = policy.judge(scores, [(i, 0) for i in (0, 1, 2, 4)])
    assert verdicts == [PAUSE, PAUSE, CONTINUE, STOP]
    assert policy.judge(scores_of([4.0, 3.0, 2.0, 1.0, np.nan, np.nan]), [(0, 0)]) == [STOP]


def test_most_paused_is_reached():
    curves = -np.arange(27.0)[:, None] * np.ones(9)  # each better than all before
    run = sweep(successive_halving(1, 3), curves, lanes=1)
    assert run.most_paused == successive_halving(1, 3).most_paused(2, 27) == 9


def test_halving_ends_where_all_diverge():
    run = sweep(successive_halving(1, 3), np.full((20, 10), np.inf), lanes=4)
    assert run.occupied == 20 and not went(run, 0)


def test_brackets_of_81():
    text = " / ".join(" ".join(f"{n}@{r}" for n, r in bracket) for bracket in brackets(81, 3))
    assert text == (
        "81@1 27@3 9@9 3@27 1@81 / 34@3 11@9 3@27 1@81 / 15@9 5@27 1@81 / 8@27 2@81 / 5@81"
    )


@quick
@hypothesis.given(st.integers(1, 10**6), st.integers(2, 6))
def test_brackets_are_those_of_the_paper(R, eta):
    table = brackets(R, eta)
    top = len(table) - 1
    assert eta**top <= R < eta ** (top + 1)
    for s, bracket in zip(range(top, -1, -1), table, strict=True):
        n = bracket[0][0]
        assert (n - 1) * (s + 1) < (top + 1) * eta**s <= n * (s + 1)
        assert bracket[-1][1] == R and len(bracket) == s + 1
        assert all(n >= 1 for n, _ in bracket)


def test_brackets_of_a_power_where_the_logarithm_is_short():
    # log(243) / log(3) is 4.999...
    assert len(brackets(243, 3)) == 6


@pytest.mark.parametrize("lanes", [1, 7, 300])
@pytest.mark.parametrize("diverging", [0.0, 0.5, 1.0])
def test_hyperband_runs_its_table(lanes, diverging):
    trials = 143 + 90  # the second round is short
    curves = random_curves(1, trials, 81, diverging)
    policy = hyperband(1)
    run = sweep(policy, curves, lanes)
    sizes, begin = [*(bracket[0][0] for bracket in brackets(81, 3)), 81, 9], 0
    rungs = [1, 3, 9, 27]
    for size, first in zip(sizes, [0, 1, 2, 3, 4, 0, 1], strict=True):
        members = set(range(begin, begin + size))
        wanted = halved(curves, sorted(members), rungs[first:], 3)
        for rung in range(4):
            alive = {i for i in members if np.isfinite(curves[i, : rungs[rung]]).all()}
            expected = alive if rung < first else wanted[rung - first]
            assert went(run, rung) & members == expected
        begin += size
    for (n, r), rung in zip(brackets(81, 3)[0], range(5), strict=True):
        arrived = reached(run, rung) & set(range(81))
        assert run.scores.ages[rung] == r
        assert len(arrived) == n or (diverging and len(arrived) < n)
    assert run.most_paused <= policy.most_paused(4, trials) == (27 + 11 + 5 + 2) + (27 + 3)


@pytest.mark.parametrize(
    "policy",
    [asha(1, 2), successive_halving(1, 2), hyperband(1, 2)],
    ids=["asha", "successive_halving", "hyperband"],
)
def test_neither_the_lanes_nor_a_restart_matter(policy):
    curves = np.round(random_curves(3, 60, 16, diverging=0.1), 1)  # with ties
    plain = sweep(policy, curves, lanes=9)
    shuffled = sweep(policy, curves, lanes=9, rng=np.random.default_rng(0))
    restarted = sweep(policy, curves, lanes=9, restart=lambda: dataclasses.replace(policy))
    assert plain.stood == shuffled.stood == restarted.stood


scores_of_members = st.lists(
    st.one_of(st.floats(-3, 3), st.sampled_from([np.inf, np.nan, -np.inf])), min_size=2, max_size=40
)


@quick
@hypothesis.given(scores_of_members, st.floats(0.01, 0.5), st.integers(0, 99), st.integers(0, 99))
def test_the_worst_and_the_diverged_copy_the_best(scores, quantile, seed, round):
    policy = pbt(1, quantile)
    copies = policy.exploit(np.array(scores), 3, seed, round)
    members = range(len(scores))
    few = max(1, int(quantile * len(scores) + 1e-9))
    finite = [i for i in members if np.isfinite(scores[i])]
    order = sorted(finite, key=lambda i: (scores[i], i))
    lost = [i for i in members if i not in finite]
    worst = set(lost) | set((order + lost)[-few:])
    assert copies.all_diverged == (not finite)
    for i in members:
        copied = bool(finite) and i in worst
        assert copies.source[i] in (order[:few] if copied else [i])
        assert copied or (not copies.resampled[i].any() and (copies.factor[i] == 1).all())
        assert set(copies.factor[i][~copies.resampled[i]]) <= ({0.8, 1.2} if copied else {1.0})
        assert set(copies.factor[i][copies.resampled[i]]) <= {1.0}
    again = policy.exploit(np.array(scores), 3, seed, round)
    for x, y in zip(copies, again, strict=True):
        np.testing.assert_array_equal(x, y)


def test_shares_of_members_are_counted_exactly():
    copies = pbt(1, 0.29).exploit(np.arange(100.0), 0, 0, 0)
    assert (copies.source != np.arange(100)).sum() == 29  # .29 * 100 is 28.999...


def test_what_members_draw_is_uniform_and_their_own():
    rounds = [pbt(1).exploit(np.arange(40.0), 2, seed=5, round=r) for r in range(300)]
    drawn = np.stack([c.source[30:] for c in rounds])
    counts = np.bincount(drawn.ravel())
    assert len(counts) == 10 and abs(counts - 300).max() < 5 * np.sqrt(300)
    resampled = np.stack([c.resampled[30:] for c in rounds])
    assert abs(resampled.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / resampled.size)
    factors = np.stack([c.factor[30:] for c in rounds])[~resampled]
    assert abs((factors == 0.8).mean() - 0.5) < 5 * np.sqrt(0.25 / factors.size)
    assert len({tuple(row) for row in drawn}) == 300
    one, other = (pbt(1).exploit(np.append(np.arange(39.0), x), 2, 5, 0) for x in (40.0, np.inf))
    np.testing.assert_array_equal(one.source, other.source)
    np.testing.assert_array_equal(one.factor, other.factor)
    assert (pbt(1).exploit(np.arange(40.0), 2, 6, 0).source != rounds[0].source).any()


@pytest.mark.parametrize("resample, all_of", [(0.0, False), (1.0, True)])
def test_probabilities_of_0_and_1(resample, all_of):
    copies = pbt(1, resample=resample).exploit(np.arange(8.0), 5, 0, 0)
    assert (copies.resampled[6:] == all_of).all()


@quick
@hypothesis.given(st.integers(0, 999), st.integers(2, 8), st.integers(0, 8))
def test_lineage_is_what_members_carry_with_them(seed, members, rounds):
    rng = np.random.default_rng(seed)
    policy, steps = pbt(1, 0.5), 10 * np.arange(1, rounds + 1)
    trained = [
        [] for _ in range(members)
    ]  # what each member has in it: who it was, every ten steps
    sources = np.empty((rounds, members), int)
    for r in range(rounds):
        trained = [[*past, i] for i, past in enumerate(trained)]
        sources[r] = policy.exploit(rng.normal(size=members), 1, seed, r).source
        trained = [list(trained[source]) for source in sources[r]]
    trained = [[*past, i] for i, past in enumerate(trained)]
    for member in range(members):
        line = lineage(sources, steps, member)
        of = dict(line)
        assert line[0][0] == 0 and line[-1][1] == member and list(of) == sorted(of)
        walked = []
        for step in range(0, 10 * rounds + 1, 10):
            walked.append(of.get(step, walked[-1] if walked else None))
        assert walked == trained[member]


def test_lineage_of_a_copy_that_is_copied_back():
    assert lineage(np.array([[0, 0], [1, 1]]), [10, 20], 0) == [(0, 0), (10, 1), (20, 0)]
    assert lineage(np.empty((0, 4), int), [], 3) == [(0, 3)]


PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=20),
    "percentile": lambda: optuna.pruners.PercentilePruner(30.0, n_startup_trials=2),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(10, 3),
    "halving_dense": lambda: optuna.pruners.SuccessiveHalvingPruner(1, 2),
    "halving_auto": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(10, 120, 3),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(3), 1),
    "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.3),
    "below": lambda: optuna.pruners.ThresholdPruner(lower=-0.5),
    "above": lambda: optuna.pruners.ThresholdPruner(upper=0.5),
}


def asked_directly(pruner, run, trials):
    """Optuna's own objects and calls, in the order of the sweep, with the task's own scores."""
    direction = "minimize" if run.scores.sign > 0 else "maximize"
    study = optuna.create_study(study_name="sweep", pruner=pruner, direction=direction)
    asked = [study.ask() for _ in range(trials)]
    verdicts = []
    for segment in range(len(run.stood)):
        now = [(int(i), int(c)) for i, c in np.argwhere(run.scores.segments == segment)]
        for trial, column in now:
            score = run.scores.sign * run.scores.table[trial, column]
            asked[trial].report(score, run.scores.ages[column])
            if not np.isfinite(score):
                study.tell(asked[trial], state=optuna.trial.TrialState.FAIL)
            elif column == len(run.scores.ages) - 1:
                study.tell(asked[trial], score)
        verdicts.append({})
        for at in sorted(run.stood[segment]):
            lost = not np.isfinite(run.scores.table[at])
            stop = lost or asked[at[0]].should_prune()
            verdicts[-1][at] = STOP if stop else CONTINUE
            if stop and not lost:
                study.tell(asked[at[0]], state=optuna.trial.TrialState.PRUNED)
    return verdicts


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sign", [1, -1], ids=["minimize", "maximize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_optunas_pruners_answer_as_in_optuna(name, sign):
    curves, policy = random_curves(4, 20, 12, diverging=0.15), from_optuna(PRUNERS[name]())
    run = sweep(policy, curves, lanes=7, segment=10, sign=sign)
    assert run.stood == asked_directly(PRUNERS[name](), run, 20)
    stopped = [v is STOP for stood in run.stood for v in stood.values()]
    assert 0 < sum(stopped) < len(stopped)
    rng = np.random.default_rng(0)
    again = sweep(policy, curves, 7, segment=10, sign=sign)  # with the policy of another run
    restart = lambda: from_optuna(PRUNERS[name]())  # noqa: E731
    restarted = sweep(policy, curves, 7, segment=10, restart=restart, rng=rng, sign=sign)
    assert run.stood == restarted.stood == again.stood


@pytest.mark.parametrize("sign", [1, -1], ids=["minimize", "maximize"])
def test_a_threshold_applies_to_the_scores_that_the_user_sees(sign):
    """The accuracies .1 to .9, or losses."""
    curves = sign * np.repeat(np.arange(1, 10)[:, None] / 10, 4, axis=1)
    run = sweep(from_optuna(optuna.pruners.ThresholdPruner(lower=0.45)), curves, 3, sign=sign)
    assert went(run, 0) == {4, 5, 6, 7, 8}


def test_optuna_is_never_asked_about_the_diverged():
    policy = from_optuna(optuna.pruners.NopPruner())
    assert policy.judge(scores_of([np.inf, 1.0]), [(0, 0), (1, 0)]) == [STOP, CONTINUE]


def test_without_optuna_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install optuna"):
        from_optuna(None)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: asha(0), r"asha\(first=...\) must be a whole number above 0, found 0"),
        (lambda: asha(10, 1), r"asha\(eta=...\) must be at least 2, found 1"),
        (lambda: asha(10, 2.5), r"asha\(eta=...\) must be a whole number above 0, found 2.5"),
        (lambda: successive_halving(1.0), r"successive_halving\(first=...\) must be a whole"),
        (lambda: successive_halving(1, 1), r"successive_halving\(eta=...\) must be at least 2"),
        (lambda: successive_halving(1, 2, 0), r"successive_halving\(bracket=...\) must be a whole"),
        (lambda: hyperband(True), r"hyperband\(first=...\) must be a whole number"),
        (lambda: hyperband(1, 1), r"hyperband\(eta=...\) must be at least 2"),
        (lambda: brackets(0, 3), r"brackets\(R=...\) must be a whole"),
        (lambda: brackets(9, 1), r"brackets\(eta=...\) must be at least 2"),
        (lambda: pbt(0), r"pbt\(every=...\) must be a whole"),
        (lambda: pbt(1, 0.6), r"pbt\(quantile=...\) must be above 0 and at most 0.5, found 0.6"),
        (lambda: pbt(1, resample=2), r"pbt\(resample=...\) must be from 0 to 1, found 2"),
        (lambda: pbt(1, factors=(0.8, -1)), r"pbt\(factors=...\) .*found \(0.8, -1\)"),
        (lambda: pbt(1, factors=0.8), r"pbt\(factors=...\) must be a sequence .*found 0.8"),
        (lambda: pbt(1).exploit(np.ones(1), 1, 0, 0), r"exploit\(scores=...\).*found shape \(1,\)"),
        (lambda: pbt(1).exploit(np.ones(2), 1, -1, 0), r"exploit\(seed=...\) .*found -1"),
        (
            lambda: lineage(np.zeros((2, 3), int), [1], 0),
            r"lineage\(ages=...\) .* 2 rounds, found 1",
        ),
        (lambda: from_optuna(optuna.pruners.NopPruner(), 0), r"from_optuna\(every=...\) must be"),
        (lambda: asha(100).rungs(100, 10), r"asha\(first=100\) leaves no rung below the 100 steps"),
        (lambda: asha(1).rungs(10, 10), r"asha\(first=1\) leaves no rung .* segments of 10"),
        (
            lambda: successive_halving(9).rungs(9, 1),
            r"successive_halving\(first=9\) leaves no rung",
        ),
        (lambda: hyperband(4).rungs(9, 1), r"hyperband\(first=4, eta=3\) leaves no rung"),
        (lambda: pbt(9).rungs(9, 3), r"pbt\(every=9\) leaves no rung"),
        (lambda: asha(1).rungs(0, 1), r"rungs\(steps=...\) must be a whole"),
        (lambda: asha(1).rungs(9, 0), r"rungs\(segment=...\) must be a whole"),
        (
            lambda: asha(1).judge(scores_of([np.nan]), [(0, 0)]),
            r"judge\(standing=...\) names trial 0 at rung 0, but it has no score there",
        ),
        (
            lambda: hyperband(1).judge(scores_of([1.0]), [(0, 1)]),
            r"judge\(standing=...\) names trial 0 at rung 1, but the scores are of 1 trials",
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_no_pruner_is_refused():
    with pytest.raises(TypeError, match=r"from_optuna\(pruner=...\) must be a pruner .*found str"):
        from_optuna("median")
