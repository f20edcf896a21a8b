"""Pictures of sweeps show every trial where it belongs: read from the artists, not the pixels."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color, to_rgba
from matplotlib.figure import Figure

import optfn
from optfn import schedules, sweep
from optfn.sweep import plot

CURVATURE = np.float32([1.0, 4.0])
SPACE = {
    "rate": sweep.LogUniform(1e-4, 3.0),
    "keep": sweep.OneMinusLogUniform(0.05, 0.5),
    "factor": [0.5, 1.0, 2.0],
    "decay": sweep.Uniform(0.0, 0.2),
    "eps": 0.0,
}


def height(params):
    return jnp.sum(CURVATURE * params**2) / 2


def sgd(rate, keep, factor, decay=0.0, eps=0.0):
    weights = optfn.add_decayed_weights(decay + eps)
    return optfn.chain(weights, optfn.sgd(rate * factor, momentum=keep))


TASK = sweep.Task(
    lambda key: jax.random.normal(key, (2,)),
    lambda params, batch: height(params),
    evaluate=lambda params: {"test_loss": height(params), "share": 1 / (1 + height(params))},
    minimize="test_loss",
)


def run(space, factory=sgd, **kwargs):
    kwargs = {"steps": 30, "segment": 3, "mode": "vmap", "max_loss": 100.0} | kwargs
    return sweep.run(TASK, factory, space, **kwargs)


@pytest.fixture(scope="module")
def searched():
    result = run(SPACE, trials=32, seeds=2, policy=sweep.asha(first=9))
    assert {"ok", "pruned", "diverged"} == set(result.status.tolist())
    return result


@pytest.fixture(scope="module")
def gridded():
    space = {"rate": [0.001, 0.01, 0.1, 10.0], "keep": [0.5, 0.9], "factor": [0.5, 1.0]}
    return run(space, search=sweep.grid(), policy=sweep.run_all())


@pytest.fixture(scope="module")
def population():
    return run(
        {"rate": SPACE["rate"], "keep": 0.5, "factor": 1.0}, trials=8, policy=sweep.pbt(every=6)
    )


@pytest.fixture
def ax():
    return Figure().subplots()


def is_lost(result):
    return result.status == "diverged"


def maximized(result):
    """The same trials of a task where higher is better."""
    return replace(
        result,
        plan=replace(result.plan, task=replace(result.task, minimize=None, maximize="share")),
        scores=np.where(np.isinf(result.scores), -np.inf, 1 / (1 + result.scores)),
    )


def marked(ax, *marks):
    """The points drawn with one of the marks."""
    data = [line.get_xydata() for line in ax.lines if line.get_marker() in marks]
    return np.concatenate(data) if data else np.empty((0, 2))


def values_of(result, name, chosen):
    return [result.points[i][name] for i in np.flatnonzero(chosen)]


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# sensitivity


def test_sensitivity_draws_every_trial_at_its_value(searched, ax):
    plot.sensitivity(searched, "rate", ax)
    lost = is_lost(searched)
    crosses = marked(ax, "x")
    np.testing.assert_array_equal(crosses[:, 0], values_of(searched, "rate", lost))
    assert (crosses[:, 1] == 0.98).all(), "at the upper edge, as a share of the axes"
    discs = marked(ax, "o")
    expected = np.array(
        [[p["rate"], s] for p, s in zip(searched.points, searched.losses, strict=True)]
    )[~lost]
    np.testing.assert_allclose(discs[discs[:, 1].argsort()], expected[expected[:, 1].argsort()])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rate", "test loss")


def test_sensitivity_shows_the_spread_of_seeds_and_pruned_trials_lighter(searched, ax):
    plot.sensitivity(searched, "rate", ax, color="#123456", label="sgd")
    ok = searched.status == "ok"
    (bars,) = ax.containers
    assert bars.get_label() == "sgd"
    (segments,) = bars.lines[2]
    spreads = [np.diff(s[:, 1])[0] / 2 for s in segments.get_segments()]
    np.testing.assert_allclose(spreads, searched.scores[ok].std(axis=1, ddof=1), rtol=1e-5)
    pale = [line for line in ax.lines if line.get_alpha()]
    assert sum(len(line.get_xdata()) for line in pale) == (searched.status == "pruned").sum()
    assert all(same_color(line.get_color(), "#123456") for line in ax.lines)


def test_sensitivity_without_seeds_or_survivors_still_draws(gridded, ax):
    plot.sensitivity(gridded, "rate", ax)
    assert not ax.containers[0].lines[2]
    worst = np.full(gridded.scores.shape, np.inf)
    lost = replace(gridded, status=np.full(len(gridded), "diverged"), scores=worst)
    fresh = plot.sensitivity(lost, "rate", Figure().subplots())
    assert len(marked(fresh, "x")) == len(gridded) and not len(marked(fresh, "o"))


def test_sensitivity_goes_by_the_axis_of_the_distribution(searched, ax):
    plot.sensitivity(searched, "keep", ax)
    ax.figure.draw_without_rendering()
    assert ax.get_xscale() == "function"
    to_axes = ax.transScale.transform([[x, 1.0] for x in (0.5, 0.75, 0.875)])[:, 0]
    first, second = np.diff(to_axes)
    np.testing.assert_allclose(first, second, rtol=1e-6)  # halves of the distance from 1
    assert labels(ax.xaxis) == ["0.5", "0.8", "0.9", "0.95"]

    choice = plot.sensitivity(searched, "factor", Figure().subplots())
    assert labels(choice.xaxis) == ["0.5", "1", "2"]
    assert set(marked(choice, "o")[:, 0]) | set(marked(choice, "x")[:, 0]) == {0, 1, 2}
    assert plot.sensitivity(searched, "decay", Figure().subplots()).get_xscale() == "linear"


def test_sensitivity_marks_what_lies_beyond_the_cap(searched, ax):
    cap = float(np.median(searched.losses[~is_lost(searched)]))
    plot.sensitivity(searched, "rate", ax, cap=cap)
    beyond = (searched.losses > cap) & ~is_lost(searched)
    np.testing.assert_array_equal(marked(ax, "^")[:, 0], values_of(searched, "rate", beyond))
    assert ax.get_ylim()[1] == cap
    assert (marked(ax, "o")[:, 1] <= cap).all()


def test_sensitivity_puts_the_lost_below_where_higher_is_better(searched, ax):
    result = maximized(searched)
    plot.sensitivity(result, "rate", ax, cap=0.5)
    assert (marked(ax, "x")[:, 1] == 0.02).all() and len(marked(ax, "x")) == is_lost(result).sum()
    low = (result.scores.mean(1) < 0.5) & ~is_lost(result)
    np.testing.assert_array_equal(marked(ax, "v")[:, 0], values_of(result, "rate", low))
    assert ax.get_ylim()[0] == 0.5


# parallel


def test_parallel_has_a_line_for_each_trial_at_the_units_of_its_values(searched, ax):
    plot.parallel(searched, ax=ax)
    names = ["rate", "keep", "factor", "decay"]
    assert labels(ax.xaxis) == [*names, "test loss"]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 5]
    assert len(lines) == len(searched)
    for trial, line in zip(searched.order(), lines, strict=True):
        units = [sweep.as_space(SPACE)[n].unit(searched.points[trial][n]) for n in names]
        np.testing.assert_allclose(line.get_ydata()[:4], units)
    ends = {t: line.get_ydata()[-1] for t, line in zip(searched.order(), lines, strict=True)}
    lost = is_lost(searched)
    assert {ends[t] for t in np.flatnonzero(lost)} == {1.1}
    assert {lines[i].get_linestyle() for i in np.flatnonzero(lost[searched.order()])} == {":"}
    kept = np.flatnonzero(~lost)
    heights = np.log(searched.losses[kept])
    heights = (heights - heights.min()) / np.ptp(heights)
    np.testing.assert_allclose([ends[t] for t in kept], heights, atol=1e-6)


def test_parallel_highlights_the_best(searched, ax):
    plot.parallel(searched, ["rate"], ax, top=3)
    named = [line for line in ax.lines if line.get_label().startswith("trial")]
    assert [line.get_label() for line in named] == [f"trial {m.trial}" for m in searched.top(3)]
    assert [line.get_color() for line in named] == list(plot.PALETTE[:3])
    trials = [line for line in ax.lines if list(line.get_xdata()) == [0, 1]]
    behind = [line.get_zorder() for line in trials if line not in named]
    assert len(behind) == len(searched) - 3
    assert max(behind) < min(line.get_zorder() for line in named)


def test_parallel_labels_axes_with_values(searched, ax):
    plot.parallel(searched, ax=ax)
    told = {(note.xy[0], note.get_text()): note.xy[1] for note in ax.texts}
    space = sweep.as_space(SPACE)
    for i, name, values in (
        (0, "rate", (1e-4, 1e-3, 0.01, 0.1, 1.0)),
        (1, "keep", (0.5, 0.8, 0.9, 0.95)),
        (2, "factor", (0.5, 1.0, 2.0)),
        (3, "decay", (0.0, 0.05, 0.1, 0.15, 0.2)),
    ):
        assert sum(at == i for at, _ in told) == len(values)
        for value in values:
            np.testing.assert_allclose(told[i, f"{value:.3g}"], space[name].unit(value), atol=1e-6)
    assert told[4, "diverged"] == 1.1


def test_parallel_turns_over_where_higher_is_better(searched, ax):
    result = maximized(searched)
    plot.parallel(result, ["rate"], ax, top=1)
    (best,) = [line for line in ax.lines if line.get_label().startswith("trial")]
    assert best.get_ydata()[-1] == 1
    assert {note.xy[1] for note in ax.texts if note.get_text() == "diverged"} == {-0.1}


# curves


def test_curves_tell_survivors_from_the_ended(searched, ax):
    plot.curves(searched, ax=ax, top=1)
    drawn = [line for line in ax.lines if line.get_marker() == "None"]
    assert len(drawn) == len(searched)
    for trial, line in enumerate(drawn):
        last = np.isfinite(searched.curves["test_loss"][trial]).sum()
        if searched.status[trial] != "diverged":
            expected = searched.curves["test_loss"][trial, :last]
            np.testing.assert_array_equal(line.get_xydata().T, [searched.ages[:last], expected])
    colors = [line.get_color() for line in drawn]
    best, ok = searched.best().trial, searched.status == "ok"
    assert colors[best] == plot.PALETTE[0] and drawn[best].get_label() == f"trial {best}"
    assert {colors[i] for i in np.flatnonzero(~ok)} == {plot.GRAY}
    assert {colors[i] for i in np.flatnonzero(ok) if i != best} == {plot.PALE}
    assert len(marked(ax, "o")) == (searched.status == "pruned").sum()
    assert len(marked(ax, "x")) == is_lost(searched).sum()


def test_curves_keep_the_lost_within_the_picture(searched, ax):
    curves = {k: v.copy() for k, v in searched.curves.items()}
    first, second = np.flatnonzero(is_lost(searched))[:2]
    curves["test_loss"][first, 0] = 1e30
    curves["test_loss"][second] = np.nan
    plot.curves(replace(searched, curves=curves), ax=ax)
    shown = searched.curves["test_loss"][~is_lost(searched)]
    assert len(marked(ax, "x")) == is_lost(searched).sum()
    assert marked(ax, "x")[:, 1].max() == np.nanmax(shown)


def test_curves_end_at_a_cap(searched, ax):
    cap = float(np.nanmedian(searched.curves["test_loss"]))
    plot.curves(searched, ax=ax, cap=cap)
    heights = np.concatenate([line.get_ydata() for line in ax.lines])
    assert heights.max() == cap and heights.min() == np.nanmin(searched.curves["test_loss"])


def test_curves_of_another_score(searched, ax):
    plot.curves(searched, "share", ax)
    assert ax.get_ylabel() == "share"
    with pytest.raises(ValueError, match=r"curves\(name=\.\.\.\) must be one of .*found 'loss of"):
        plot.curves(searched, "loss of", ax)


# heat_map


def test_heat_map_of_a_grid_is_a_mesh_with_the_best_of_each_cell(gridded, ax):
    plot.heat_map(gridded, "rate", "keep", ax)
    (mesh,) = ax.collections
    table = np.full((2, 4), np.inf)
    rates, keeps = [0.001, 0.01, 0.1, 10.0], [0.5, 0.9]
    for point, score in zip(gridded.points, gridded.losses, strict=True):
        j, i = keeps.index(point["keep"]), rates.index(point["rate"])
        table[j, i] = min(table[j, i], score)
    assert np.isinf(table).any(), "some cell diverged"
    found = mesh.get_array().reshape(2, 4)
    np.testing.assert_allclose(found.filled(np.inf), table)
    written = [text.get_text() for text in ax.texts]
    assert written == [f"{x:.3g}" if np.isfinite(x) else "×" for x in table.ravel()]
    assert labels(ax.xaxis) == ["0.001", "0.01", "0.1", "10"]
    assert labels(ax.yaxis) == ["0.5", "0.9"]
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "test loss"


def test_heat_map_of_other_searches_has_a_disc_for_each_trial(searched, ax):
    plot.heat_map(searched, "rate", "keep", ax)
    (discs,) = ax.collections
    lost = is_lost(searched)
    at = [[p["rate"], p["keep"]] for p in searched.points]
    np.testing.assert_allclose(discs.get_offsets(), np.array(at)[~lost])
    np.testing.assert_allclose(discs.get_array(), searched.losses[~lost])
    small = discs.get_sizes() < discs.get_sizes().max()
    np.testing.assert_array_equal(small, (searched.status != "ok")[~lost])
    np.testing.assert_allclose(marked(ax, "x"), np.array(at)[lost])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "function")
    low, high = ax.get_ylim()
    assert 0.4 < low < 0.5 and 0.95 < high < 0.97


def test_heat_map_is_dark_where_it_is_good(searched, ax):
    def shade(result, best):
        (discs,) = plot.heat_map(result, "rate", "keep", Figure().subplots()).collections
        return sum(discs.cmap(discs.norm(best))[:3])

    assert shade(searched, searched.best().score) < 0.7
    result = maximized(searched)
    assert shade(result, result.best().score) < 0.7


# schedules


def test_schedules_are_what_the_updates_use(ax):
    rate = schedules.warmup_cosine(0.1, 4, 20)
    optimizers = {
        "plain": optfn.adamw(rate),
        "every second": optfn.accumulate(optfn.adamw(rate), 2),
    }
    plot.schedules(optimizers, ax=ax, steps=20)
    plain, second = ax.lines
    expected = np.array([rate(i) for i in range(20)])
    np.testing.assert_allclose(plain.get_ydata()[:-1], expected, rtol=1e-6)
    np.testing.assert_allclose(second.get_ydata()[:-1], np.repeat(expected[:10], 2), rtol=1e-6)
    assert [line.get_label() for line in ax.lines] == ["plain", "every second"]
    assert plain.get_xdata().tolist() == list(range(21)) and ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "learning rate"


def test_schedules_of_other_numbers_and_other_params(ax):
    tx = optfn.partition(
        {"w": optfn.adam(0.1, b1=schedules.linear(0.5, 0.9, 4)), "b": optfn.sgd(0.2)},
        optfn.by_path({"w": "w", "b": "b"}),
    )
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    plot.schedules({"w": tx}, "b1", ax, steps=5, params=params)
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:-1], [0.5, 0.6, 0.7, 0.8, 0.9], rtol=1e-6)


def test_schedules_of_a_population_are_those_it_found(population, ax):
    plot.schedules(population, "learning_rate", ax, top=2)
    for line, member in zip(ax.lines, population.top(2), strict=True):
        assert line.get_label() == f"trial {member.trial}"
        found = population.hyperparameter_history[member.trial]
        starts = [start for start, _ in found] + [30]
        expected = np.concatenate(
            [
                np.full(b - a, p["rate"])
                for (a, b), (_, p) in zip(pairwise(starts), found, strict=True)
            ]
        )
        np.testing.assert_allclose(line.get_ydata()[:-1], expected, rtol=1e-6)


def test_schedules_of_a_result_that_diverged(ax):
    result = run({"learning_rate": [1e30, 1e31]}, optfn.sgd, search=sweep.grid())
    assert (result.status == "diverged").all()
    plot.schedules(result, ax=ax)
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([1e30, 1e31])
    assert len(ax.lines[0].get_xdata()) == result.plan.steps + 1


def test_schedules_need_steps_and_a_name(ax):
    with pytest.raises((TypeError, ValueError), match=r"schedules\(steps=\.\.\.\)"):
        plot.schedules({"adam": optfn.adam(0.1)}, ax=ax)
    with pytest.raises(ValueError, match="no hyperparameter is named 'rate'"):
        plot.schedules({"adam": optfn.adam(0.1)}, "rate", ax, steps=3)


# lineage


def bars(ax, member_row, color=None):
    rows = [line for line in ax.lines if set(line.get_ydata()) == {member_row}]
    return [line for line in rows if (line.get_color() == "black") == (color == "black")]


def test_lineage_has_a_row_for_each_member_colored_by_its_rates(population, ax):
    plot.lineage(population, "rate", ax)
    rates = np.array([p["rate"] for past in population.own_history for _, p in past])
    norm = matplotlib.colors.LogNorm(rates.min(), rates.max())
    cmap = matplotlib.colormaps["viridis"]
    for row, member in enumerate(population.order()):
        drawn = [line for line in bars(ax, row) if line.get_marker() == "None"]
        past = population.own_history[member]
        starts = [start for start, _ in past]
        assert [line.get_xdata()[0] for line in drawn] == starts
        assert [line.get_xdata()[1] for line in drawn] == [*starts[1:], population.steps[member]]
        for line, (_, point) in zip(drawn, past, strict=True):
            np.testing.assert_allclose(to_rgba(line.get_color()), cmap(norm(point["rate"])))
    assert labels(ax.yaxis) == [str(i) for i in range(8)]
    assert (ax.get_yticks() == np.argsort(population.order())).all()
    assert ax.yaxis_inverted()


def test_lineage_has_an_arrow_for_each_copy(population, ax):
    plot.lineage(population, "rate", ax)
    rows = np.argsort(population.order())
    expected = {
        (step, rows[source], rows[member])
        for step, sources in zip((6, 12, 18, 24), population.copied_from, strict=True)
        for member, source in enumerate(sources)
        if source != member
    }
    arrows = [note for note in ax.texts if note.arrow_patch]
    assert {(note.xy[0], note.xyann[1], note.xy[1]) for note in arrows} == expected
    assert all(note.xy[0] == note.xyann[0] for note in arrows)
    assert len(arrows) == len(expected) >= 8


def test_lineage_outlines_the_line_of_the_best(population, ax):
    plot.lineage(population, "rate", ax)
    rows, best = np.argsort(population.order()), population.best().trial
    family = sweep.policies.pbt.lineage(population.copied_from, (6, 12, 18, 24), best)
    outlined = [line for line in ax.lines if line.get_color() == "black"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in outlined] == [
        (start, rows[member]) for start, member in family
    ]
    assert outlined[-1].get_xdata()[1] == 30 and outlined[-1].get_ydata()[0] == 0
    black = [note for note in ax.texts if note.arrow_patch.get_edgecolor() == to_rgba("black")]
    assert len(black) == len(family) - 1


def test_lineage_of_a_population_that_moves_by_itself(ax):
    """A copy of oneself is a new point without an arrow; a round without copies is a round."""
    result = run(SPACE, trials=8, policy=moving(every=6))
    plot.lineage(result, "rate", ax)
    arrows = [note for note in ax.texts if note.arrow_patch]
    assert [note.xy[0] for note in arrows] == [12] and len(result.copied_from) == 4
    starts = {line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2}
    assert starts == {0, 6, 12}


def test_lineage_refuses_what_is_no_population(searched, ax):
    with pytest.raises(ValueError, match=r"it needs pbt"):
        plot.lineage(searched, "rate", ax)


class moving(sweep.pbt):
    """Everyone moves at the first rung, one copies another at the second, nobody does later."""

    def start(self, plan, trials):
        return self

    def judge(self, scores, standing):
        verdicts = {
            0: lambda trial: sweep.Copy(trial, factor={"rate": 0.9}),
            1: lambda trial: sweep.Copy(0) if trial == 7 else sweep.Verdict.CONTINUE,
        }
        return [
            verdicts.get(rung, lambda _: sweep.Verdict.CONTINUE)(trial) for trial, rung in standing
        ]


# all of them


@pytest.mark.parametrize(
    "draw, where",
    [
        (lambda result, name: plot.sensitivity(result, name), "sensitivity(name=...)"),
        (lambda result, name: plot.parallel(result, [name]), "parallel(names=...)"),
        (lambda result, name: plot.heat_map(result, name, "rate"), "heat_map(x=...)"),
        (lambda result, name: plot.heat_map(result, "rate", name), "heat_map(y=...)"),
    ],
)
@pytest.mark.parametrize("name", ["eps", "momentum"])
def test_only_what_was_searched_can_be_drawn(searched, draw, where, name):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    with pytest.raises(ValueError) as caught:
        draw(searched, name)
    pyplot.close("all")
    assert str(caught.value) == (
        f"{where} must be a hyperparameter that was searched, one of rate, keep, factor, decay, "
        f"found {name!r}."
    )


def test_the_current_axes_are_drawn_on_if_none_are_given(searched):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    assert plot.curves(searched) is pyplot.gca()
    pyplot.close("all")
