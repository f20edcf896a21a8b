"""Pictures of a sweep: results in, matplotlib axes out."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.data import check_count
from optfn.core.hyperparameters import hyperparameters
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.sweep.importance import importances, searched, trials_that_ran
from optfn.sweep.one_of import OneOf
from optfn.sweep.one_of import names as names_of
from optfn.sweep.plan import ceil_div
from optfn.sweep.policies.pbt import lineage as ancestry
from optfn.sweep.space import BELOW_ONE, Choice, Distribution
from optfn.sweep.trials import Trials

# Colors that people with color blindness can tell apart (Okabe and Ito 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PALE, GRAY = "#9fc5de", "#bbbbbb"

# A range of numbers with a ratio above this has a logarithmic axis.
WIDE = 10


def sensitivity(
    result: Trials,
    name: str,
    ax: Any = None,
    *,
    color: str = PALETTE[0],
    label: str = "",
    cap: float | None = None,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """The score against one hyperparameter: how wide the range is in which it works.

    Finished trials are discs, with a bar of one standard deviation to each side if they had several
    seeds; trials that ended early are small rings at their last score, which does not compare with
    a final one. Diverged trials are crosses at the upper edge (the lower edge where higher is
    better), never left out. The axis has the scale on which the distribution searches evenly.
    `ax.legend()` explains the marks.

    Args:
        result: a result of `sweep.run`.
        name: the name of a hyperparameter that was searched.
        ax: matplotlib axes; None is the current ones.
        color: the color of all marks.
        label: the label of the trials in a legend, in the place of what their marks mean.
        cap: the worst score that the axis shows; worse trials are triangles at the edge.
        where: shows the trials that have these values, such as `{"optimizer": "adam"}` of a
            conditional space; None is all.

    Returns:
        The axes.

    Raises:
        ValueError: no such hyperparameter was searched.
    """
    trials = trials_that_ran(result, where, "sensitivity")
    ax, (scores, spreads, status) = _axes(ax), _outcomes(result, trials)
    distribution = _distribution(result, trials, name, "sensitivity(name=...)")
    x = _positions(distribution, [result.points[i][name] for i in trials])
    sign, lost = result.task.sign, ~np.isfinite(scores)
    beyond = ~lost & (cap is not None and sign * scores > sign * (cap or 0))
    ok, ended = (~lost & ~beyond & chosen for chosen in (status == "ok", status != "ok"))
    means = {"o": "ran to the end", ".": "ended early", "x": "diverged", "^": "beyond the edge"}
    labels = {"o": label} if label else means
    bars = {"yerr": spreads[ok], "elinewidth": 1} if result.scores.shape[1] > 1 else {}
    ax.errorbar(
        x[ok], scores[ok], fmt="o", color=color, markersize=5, label=labels["o"], zorder=3, **bars
    )
    if ended.any():
        ring = {"mfc": "none", "mew": 1, "markersize": 3, "alpha": 0.7, "label": labels.get(".")}
        ax.plot(x[ended], scores[ended], "o", color=color, **ring)
    edge = 0.98 if sign > 0 else 0.02
    at_edge = {"color": color, "markersize": 5, "transform": ax.get_xaxis_transform()}
    for chosen, key, mark in ((lost, "x", "x"), (beyond, "^", "^" if sign > 0 else "v")):
        if chosen.any():
            height = np.full(chosen.sum(), edge)
            ax.plot(x[chosen], height, mark, clip_on=False, label=labels.get(key), **at_edge)
    _scale(ax.xaxis, distribution, x)
    _score_axis(ax.yaxis, scores[ok | ended])
    if cap is not None:
        ax.set_ylim(**{"top" if sign > 0 else "bottom": cap})
    ax.set(xlabel=_words(name), ylabel=_words(result.task.objective))
    return ax


def parallel(
    result: Trials,
    names: Sequence[str] | None = None,
    ax: Any = None,
    *,
    top: int = 5,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """A line for each trial across an axis for each hyperparameter, the score as the last axis.

    Shows which combinations are good, where `sensitivity` sees one hyperparameter at a time. An
    axis shows evenly what its distribution searches evenly. The best trials are in color, the
    others gray, pruned ones thinner; diverged trials are dotted, and end beyond the worst score.

    Args:
        result: a result of `sweep.run`.
        names: the hyperparameters, from left to right; None is all that were searched and that all
            these trials have.
        ax: matplotlib axes; None is the current ones.
        top: the number of best trials in color.
        where: shows the trials that have these values; None is all.

    Returns:
        The axes.

    Raises:
        ValueError: no such hyperparameter was searched.
    """
    trials = trials_that_ran(result, where, "parallel")
    ax, (scores, _, status) = _axes(ax), _outcomes(result, trials)
    names = list(searched(result, trials) if names is None else names)
    columns, scales = [], []
    for name in names:
        distribution = _distribution(result, trials, name, "parallel(names=...)")
        columns.append([distribution.unit(result.points[i][name]) for i in trials])
        scales.append(_ticks(distribution))
    lost, ratio = ~np.isfinite(scores), _ratio_to(scores)
    beyond = 1.1 if result.task.sign > 0 else -0.1
    columns.append([ratio(score) if np.isfinite(score) else beyond for score in scores])
    scales.append([(ratio(value), _number(value)) for value in _score_ticks(scores)])
    if lost.any():
        scales[-1].append((beyond, "diverged"))

    best = _best(result, trials, top)
    heights = np.array(columns)
    for i in np.argsort(np.argsort(result.order())[trials]):
        trial = int(trials[i])
        if trial in best:
            rank = best.index(trial)
            style = {"color": _color(rank), "linewidth": 2, "label": f"trial {trial}"}
            style["zorder"] = 4 - rank / len(best)
        elif lost[i]:
            style = {"color": "#777777", "linewidth": 0.8, "linestyle": ":", "zorder": 1}
        else:
            width = 0.9 if status[i] == "ok" else 0.4
            style = {"color": GRAY, "linewidth": width, "zorder": 2}
        ax.plot(heights[:, i], clip_on=False, **style)
    for i, scale in enumerate(scales):
        ax.axvline(i, color="black", linewidth=0.8, zorder=5, clip_on=False)
        for height, text in scale:
            ax.plot([i - 0.015, i + 0.015], [height] * 2, color="black", linewidth=0.8, zorder=5)
            ax.annotate(
                text,
                (i, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
                zorder=6,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75},
            )
    ax.set_xticks(range(len(scales)), [_words(n) for n in (*names, result.task.objective)])
    ax.set(xlim=(0, len(names)), ylim=(min(0, beyond), max(1, beyond)), yticks=[])
    ax.tick_params(axis="x", length=0, pad=10)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def curves(
    result: Trials,
    name: str | None = None,
    ax: Any = None,
    *,
    top: int = 5,
    cap: float | None = None,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """A score over the steps of every trial.

    The best trials are in color, other finished trials pale, and trials that ended early gray with
    a dot at their last value. Diverged trials have a cross there, at the edge if that value is
    beyond all others.

    Args:
        result: a result of `sweep.run`.
        name: the name of the score; None is the score that was optimized.
        ax: matplotlib axes; None is the current ones.
        top: the number of best trials with a color of their own.
        cap: the worst score that the axis shows; worse ones lie on its edge.
        where: shows the trials that have these values; None is all.

    Returns:
        The axes.

    Raises:
        ValueError: no score of this name was recorded.
    """
    ax = _axes(ax)
    name = name or result.task.objective
    if name not in result.curves:
        raise ValueError(
            f"curves(name=...) must be one of {', '.join(result.curves)}, found {name!r}."
        )
    trials = trials_that_ran(result, where, "curves")
    best = [i for i in _best(result, trials, top) if result.status[i] == "ok"]
    table = result.curves[name]
    lost = np.isin(result.status, ("diverged", "not_finite"))
    good = trials[~lost[trials]]
    shown = table[good if len(good) else trials]
    shown = shown[np.isfinite(shown)]
    low, high = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
    worst = result.task.sign * np.inf if name == result.task.objective else np.inf
    if cap is not None:
        low, high = (low, min(high, cap)) if worst > 0 else (max(low, cap), high)
    for trial in trials:
        values = table[trial]
        there = np.flatnonzero(np.isfinite(values))
        ages = result.ages[: there[-1] + 1 if len(there) else 1]
        values = np.clip(values[: len(ages)] if len(there) else [worst], low, high)
        if trial in best:
            style = {"color": _color(best.index(trial)), "zorder": 4, "label": f"trial {trial}"}
        elif result.status[trial] == "ok":
            style = {"color": PALE, "linewidth": 1, "zorder": 3}
        else:
            style = {"color": GRAY, "linewidth": 0.8, "zorder": 1}
        ax.plot(ages, values, **style)
        if result.status[trial] != "ok":
            mark = {"marker": "x" if lost[trial] else "o", "markersize": 5 if lost[trial] else 3}
            ax.plot(ages[-1], values[-1], color="#888888", zorder=2, clip_on=False, **mark)
    _score_axis(ax.yaxis, np.clip(shown, low, high))
    ax.set(xlabel="step", ylabel=_words(name))
    return ax


def heat_map(
    result: Trials,
    x: str,
    y: str,
    ax: Any = None,
    *,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """The score over two hyperparameters, dark where it is good.

    If every pair of values was tried, as by `grid()`, a mesh of equal cells, each with its score; a
    cell of several trials, as with a third hyperparameter, shows the best. Otherwise a disc for
    each trial, a small one if it was pruned. A cell or a trial that diverged is a cross.

    Args:
        result: a result of `sweep.run`.
        x, y: names of hyperparameters that were searched.
        ax: matplotlib axes; None is the current ones. Their figure gets a color bar.
        where: shows the trials that have these values; None is all.

    Returns:
        The axes.

    Raises:
        ValueError: no such hyperparameters were searched.
    """
    trials = trials_that_ran(result, where, "heat_map")
    ax, (scores, _, status) = _axes(ax), _outcomes(result, trials)
    across, up = (
        _distribution(result, trials, name, f"heat_map({which}=...)")
        for which, name in (("x", x), ("y", y))
    )
    at = np.stack(
        [
            _positions(d, [result.points[i][name] for i in trials])
            for d, name in ((across, x), (up, y))
        ],
        axis=1,
    )
    lost = ~np.isfinite(scores)
    style = {
        "norm": _norm(scores[~lost]),
        "cmap": "viridis" if result.task.sign > 0 else "viridis_r",
    }
    columns, rows = (np.unique(values) for values in at.T)
    ranked = np.argsort(np.argsort(result.order())[trials])  # the best first
    cells = {
        place: [i for i in ranked if tuple(at[i]) == place]
        for place in {tuple(pair) for pair in at.tolist()}
    }
    if len(cells) == len(columns) * len(rows) > 1:
        table = np.array(
            [[scores[cells[i, j][0]] for i in columns.tolist()] for j in rows.tolist()]
        )
        drawn = ax.pcolormesh(np.ma.masked_invalid(table), edgecolors="white", linewidth=1, **style)
        for j, row in enumerate(table):
            for i, score in enumerate(row):
                good = np.isfinite(score)
                dark = good and sum(drawn.cmap(drawn.norm(score))[:3]) < 1.5
                ax.text(
                    i + 0.5,
                    j + 0.5,
                    _number(score) if good else "×",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize="small",
                )
        for axis, d, values in ((ax.xaxis, across, columns), (ax.yaxis, up, rows)):
            texts = [
                _word(d.options[int(v)]) if isinstance(d, Choice) else _number(v) for v in values
            ]
            axis.set_ticks(np.arange(len(values)) + 0.5, texts)
    else:
        sizes = np.where(status == "ok", 40, 12)
        drawn = ax.scatter(*at[~lost].T, c=scores[~lost], s=sizes[~lost], **style)
        ax.plot(*at[lost].T, "x", color="#777777", markersize=5)
        _scale(ax.xaxis, across, at[:, 0])
        _scale(ax.yaxis, up, at[:, 1])
    _color_bar(drawn, scores, ax, result.task.objective)
    ax.set(xlabel=_words(x), ylabel=_words(y))
    return ax


def schedules(
    of: Trials | Mapping[str, Transform],
    name: str = "learning_rate",
    ax: Any = None,
    *,
    steps: int | None = None,
    top: int = 5,
    params: PyTree = None,
) -> Any:
    """A hyperparameter over the steps, as the updates use it, one line for each optimizer.

    For a result, the lines of its best trials; under `pbt` the schedules that it found, through the
    members from which each trial descends. The lines come from updates with gradients and losses of
    zero, so schedules inside wrappers count their own steps; a hyperparameter that responds to the
    training, as by `reduce_on_plateau`, does not change here, see `monitor`.

    Args:
        of: a result of `sweep.run`, or optimizers by the label of their line.
        name: a name of `hyperparameters(tx, state)`.
        ax: matplotlib axes; None is the current ones.
        steps: the number of steps; None is the longest trial's, or a whole run's if all diverged.
            Required with optimizers.
        top: the number of a result's trials.
        params: the params that the optimizers train, where they depend on paths or shapes; None is
            one number.

    Returns:
        The axes.

    Raises:
        ValueError: there are no steps.
        HyperparameterNameError: an optimizer has no such hyperparameter.
    """
    ax = _axes(ax)
    if isinstance(of, Trials):
        trials = _best(of, of.order(), top)
        length: Any = int(of.steps.max()) if trials else of.plan.steps
        length = length if steps is None else steps
        trials = trials or [int(i) for i in of.order() if i not in of.errors][:top]  # diverged
        lines = {
            f"trial {trial}": [
                (start, of.plan.optimizer(point))
                for start, point in of.hyperparameter_history[trial]
            ]
            for trial in trials
        }
    else:
        length, lines = steps, {str(label): [(0, tx)] for label, tx in of.items()}
    check_count(length, "schedules(steps=...)")
    params = jnp.zeros(()) if params is None else params
    reading = jax.jit(partial(_reading, name=name, steps=length))
    peaks = []
    for rank, (label, line) in enumerate(lines.items()):
        values = np.empty(length)
        for start, tx in line:
            values[start:] = reading(tx, params)[start:]
            peaks.append(values[start:].max(initial=0.0))
        style = "-" if rank < len(PALETTE) else "--"
        edges, values = np.arange(length + 1), np.append(values, values[-1])
        line = {"color": _color(rank), "label": label, "zorder": 3 - rank / len(lines)}
        ax.plot(edges, values, style, drawstyle="steps-post", **line)
    _score_axis(ax.yaxis, np.array(peaks))
    ax.set(xlabel="step", ylabel=_words(name))
    return ax


def lineage(result: Trials, name: str = "learning_rate", ax: Any = None) -> Any:
    """The copies under `pbt`: a row for each member, the best on top, colored by a hyperparameter.

    A row changes its color where its member copied another, from whose row an arrow comes. The
    outlined line led to the best member: its colors are the schedule that was found.

    Args:
        result: a result of `sweep.run` with `pbt`.
        name: the name of a hyperparameter that was searched.
        ax: matplotlib axes; None is the current ones. Their figure gets a color bar.

    Returns:
        The axes.

    Raises:
        ValueError: the result is of another policy; no such hyperparameter was searched.
    """
    if not len(result.copied_from):
        raise ValueError(
            "lineage(result) draws who copied whom, but nobody did: it needs pbt(...) or another "
            "policy of a population."
        )
    from matplotlib.cm import ScalarMappable

    ax = _axes(ax)
    distribution = _distribution(result, result.order(), name, "lineage(name=...)")
    values = [_positions(distribution, [p[name] for _, p in past]) for past in result.own_history]
    shades = ScalarMappable(_norm(np.concatenate(values)), "viridis")
    rows = np.argsort(result.order())
    rounds = result.rungs[: len(result.copied_from)]  # all members stand at each
    best = int(result.order()[0])
    family = ancestry(result.copied_from, rounds, best)
    ends = [start for start, _ in family[1:]] + [int(result.steps[best])]
    for (start, member), end in zip(family, ends, strict=True):
        ax.plot(
            [start, end],
            [rows[member]] * 2,
            color="black",
            linewidth=9,
            solid_capstyle="butt",
            zorder=1,
        )
    for member, past in enumerate(result.own_history):
        starts = [start for start, _ in past] + [int(result.steps[member])]
        for (start, end), value in zip(pairwise(starts), values[member], strict=True):
            ax.plot(
                [start, end],
                [rows[member]] * 2,
                color=shades.to_rgba(value),
                linewidth=5,
                solid_capstyle="butt",
                zorder=2,
            )
    led = {(start, member) for start, member in family[1:]}
    for step, sources in zip(rounds, result.copied_from, strict=True):
        for member in np.flatnonzero(sources != np.arange(len(sources))):
            ours = (step, member) in led
            ax.annotate(
                "",
                (step, rows[member]),
                (step, rows[sources[member]]),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "black" if ours else "#888888",
                    "linewidth": 1.5 if ours else 0.7,
                    "connectionstyle": "arc3,rad=0.15",
                    "shrinkA": 2,
                    "shrinkB": 2,
                },
                zorder=4 if ours else 3,
            )
    for member in np.flatnonzero(result.status != "ok"):
        ax.plot(result.steps[member], rows[member], "kx", markersize=6, zorder=5)
    bar = _color_bar(shades, np.concatenate(values), ax, name)
    if isinstance(distribution, Choice):
        bar.set_ticks(*_choices(distribution))
    ax.set_yticks(rows, [f"{i}" for i in range(len(rows))])
    ax.invert_yaxis()
    ax.set(xlabel="step", ylabel="member, the best on top")
    return ax


def importance(
    result: Trials,
    ax: Any = None,
    *,
    color: str = PALETTE[0],
    where: Mapping[str, Any] | None = None,
) -> Any:
    """A bar for each hyperparameter: how much it decides about a trial, see `sweep.importances`.

    Args:
        result: a result of `sweep.run`.
        ax: matplotlib axes; None is the current ones.
        color: the color of the bars.
        where: counts the trials that have these values; None is all.

    Returns:
        The axes.

    Raises:
        ImportError: Optuna or scikit-learn is not installed.
        ValueError: fewer than eight of these trials ran.
    """
    ax, shares = _axes(ax), importances(result, where=where)
    ax.barh([_words(name) for name in shares], list(shares.values()), color=color, height=0.6)
    for row, share in enumerate(shares.values()):
        ax.text(share + 0.01, row, f"{share:.2f}", va="center", fontsize="small")
    ax.invert_yaxis()
    ax.set(xlabel="importance", xlim=(0, 1.1))
    return ax


def pareto(front: Any, ax: Any = None) -> Any:
    """One score against another: trials that ran to the end, and those that no other beats.

    Args:
        front: what `sweep.pareto` found, of two scores.
        ax: matplotlib axes; None is the current ones.

    Returns:
        The axes.

    Raises:
        ValueError: it has another number of scores.
    """
    if len(front.values) != 2:
        raise ValueError(
            f"pareto(front=...) must have two scores, found {', '.join(front.values)}."
        )
    ax, (x, y), chosen = _axes(ax), front.values.values(), list(front.numbers)
    ax.plot(x, y, "o", color=GRAY, markersize=4, label="beaten by another")
    ax.plot(x[chosen], y[chosen], "o", color=PALETTE[0], markersize=6, label="beaten by none")
    lines = {"color": PALETTE[0], "linewidth": 1, "alpha": 0.5}
    # What is between two of them would be beaten on the far side of this line.
    ax.plot(x[chosen], y[chosen], drawstyle="steps-post", **lines)
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        _score_axis(axis, values[np.isfinite(values)])
    ax.set(**{f"{a}label": _words(name) for a, name in zip("xy", front.values, strict=True)})
    return ax


def learning_rates(found: Any, ax: Any = None) -> Any:
    """The score against the learning rate of `find_learning_rate`, and the rate that it suggests.

    The good rates are shaded, the suggestion is a line through their middle, and the score of rate
    0 is dotted. Rates that diverged, or ended worse than they started, are crosses at the edge.

    Args:
        found: what `find_learning_rate` returned.
        ax: matplotlib axes; None is the current ones.

    Returns:
        The axes.
    """
    ax, scores = _axes(ax), found.scores
    sign, task = found.result.task.sign, found.result.task
    kept = found.improvements >= 0
    ax.axvspan(*found.good, color=PALE, alpha=0.5, linewidth=0)
    ax.axhline(found.start, color="#777777", linestyle=":", label="without training")
    ax.axvline(found.suggestion, color=PALETTE[1], label=f"suggested: {found.suggestion:.2g}")
    ax.plot(found.rates, np.where(kept, scores, np.nan), "o-", color=PALETTE[0], markersize=4)
    lost = found.rates[~kept]
    edge = np.full(len(lost), 0.98 if sign > 0 else 0.02)
    ax.plot(
        lost,
        edge,
        "x",
        color=PALETTE[0],
        markersize=5,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )
    _set_scale(ax.xaxis, "log")
    _score_axis(ax.yaxis, np.append(scores[kept], found.start))
    ax.set(xlabel="learning rate", ylabel=_words(task.objective))
    ax.legend()
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.gca()


def _outcomes(result: Trials, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, spread and status of the trials."""
    return result.task.sign * result.losses[trials], result.spreads[trials], result.status[trials]


def _best(result: Trials, trials: np.ndarray, top: int) -> list[int]:
    """The best of the trials that can win."""
    best = [int(i) for i in result.order() if i in trials][:top]
    return [i for i in best if result.can_win[i]]


def _distribution(result: Trials, trials: np.ndarray, name: str, where: str) -> Distribution:
    space = searched(result, trials)
    if name in space:
        return space[name]
    if name in names_of(result.plan.space, searched=True):
        choices = [d.name for d in space.values() if isinstance(d, OneOf)]
        example = f"{{{choices[0]!r}: ...}}" if choices else "..."
        raise ValueError(
            f"{where}: not all of these trials have {name!r} with one range: choose those that do, "
            f"by where={example}."
        )
    raise ValueError(
        f"{where} must be a hyperparameter that was searched, one of "
        f"{', '.join(space) or 'none'}, found {name!r}."
    )


def _positions(distribution: Distribution, values: list[Any]) -> np.ndarray:
    """Numbers as they are, and choices by their position in the list."""
    if isinstance(distribution, Choice):
        return np.array([distribution.index(value) for value in values], float)
    return np.array(values, float)


def _scale(axis: Any, distribution: Distribution, positions: np.ndarray) -> None:
    """Makes an axis show evenly what the distribution searches evenly."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if distribution.axis == "choice":
        axis.set_ticks(*_choices(distribution))
        _set_limits(axis, -0.5, len(_choices(distribution)[0]) - 0.5)
    elif distribution.axis == "log":
        _score_axis(axis, positions, log=True)
    elif distribution.axis == "one minus log":
        functions = (
            lambda x: -np.log10(np.maximum(1 - np.asarray(x, float), 1e-9)),
            lambda x: 1 - 10 ** -np.asarray(x, float),
        )
        _set_scale(axis, "function", functions=functions)
        low, high = distribution.at(0.0), distribution.at(BELOW_ONE)
        margin = ((1 - low) / (1 - high)) ** 0.05
        _set_limits(axis, 1 - (1 - low) * margin, 1 - (1 - high) / margin)
        axis.set_major_locator(FixedLocator(_below_one(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
        axis.set_minor_locator(NullLocator())


def _set_scale(axis: Any, scale: str, **kwargs: Any) -> None:
    getattr(axis.axes, f"set_{axis.axis_name}scale")(scale, **kwargs)


def _set_limits(axis: Any, low: float, high: float) -> None:
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)


def _ticks(distribution: Distribution) -> list[tuple[float, str]]:
    """Round values of a distribution, each with its `u`."""
    from matplotlib.ticker import MaxNLocator

    if isinstance(distribution, Choice):
        return [(distribution.unit(x), _word(x)) for x in distribution.options]
    low, high = distribution.at(0.0), distribution.at(BELOW_ONE)
    if distribution.axis == "log":
        values = _round_logs(low, high)
    elif distribution.axis == "one minus log":
        values = _below_one(low, high)
    else:
        whole = isinstance(low, int)
        values = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
        values = [type(low)(x) for x in values if low <= np.float32(x) <= high]
    return [(distribution.unit(min(max(x, low), high)), _number(x)) for x in values]


def _choices(distribution: Distribution) -> tuple[list[int], list[str]]:
    texts = [_word(x) for x in distribution.options]  # pyright: ignore[reportAttributeAccessIssue]
    return list(range(len(texts))), texts


def _is_wide(values: np.ndarray) -> bool:
    """Whether the values span so much that a linear axis would hide most of them."""
    return bool(len(values)) and values.min() > 0 and values.max() / values.min() > WIDE


def _score_axis(axis: Any, values: np.ndarray, *, log: bool | None = None) -> None:
    """Makes an axis logarithmic if the values are wide, with labels that do not overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not (_is_wide(values) if log is None else log):
        return
    _set_scale(axis, "log")
    axis.set_minor_formatter(NullFormatter())
    if values.max() / values.min() < 1000:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))


def _ratio_to(scores: np.ndarray) -> Any:
    """A function from scores to heights from 0 to 1."""
    scores = scores[np.isfinite(scores)]
    form = np.log if _is_wide(scores) else np.asarray
    low, high = form([scores.min(), scores.max()]) if len(scores) else (0.0, 1.0)
    return lambda score: float((form(score) - low) / ((high - low) or 1.0))


def _score_ticks(scores: np.ndarray) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return []
    low, high = float(scores.min()), float(scores.max())
    if _is_wide(scores):
        return _round_logs(low, high)
    return [
        x
        for x in map(float, MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high))
        if low <= x <= high
    ]


def _norm(values: np.ndarray) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    if not len(values):
        return Normalize(0, 1)
    return (LogNorm if _is_wide(values) else Normalize)(values.min(), values.max())


def _color_bar(drawn: Any, values: np.ndarray, ax: Any, name: str) -> Any:
    bar = ax.figure.colorbar(drawn, ax=ax, label=_words(name))
    bar.minorticks_off()
    ticks = _score_ticks(values)
    bar.set_ticks(ticks, labels=list(map(_number, ticks)))
    return bar


def _round_logs(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, with 2 and 5 times them if there are few."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    every = ceil_div(len(powers), 8)
    tens = [10.0**k for k in powers if k % every == 0]
    fine = [float(f"{m}e{k}") for k in powers for m in (1, 2, 5)]
    low, high = low * (1 - 1e-5), high * (1 + 1e-5)  # bounds are rounded to float32
    tens, fine = ([x for x in values if low <= x <= high] for values in (tens, fine))
    return tens if len(tens) > 2 else fine


def _below_one(low: float, high: float) -> list[float]:
    """Round numbers below 1 between two numbers: 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, ..."""
    return [round(1 - x, 9) for x in _round_logs(1 - high, 1 - low)][::-1]


def _color(rank: int) -> str:
    return PALETTE[rank % len(PALETTE)]


def _number(x: float) -> str:
    return f"{x:.3g}"


def _word(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    text = getattr(value, "__name__", None) or str(value)
    return text if len(text) <= 16 else text[:15] + "…"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _reading(tx: Transform, params: PyTree, *, name: str, steps: int) -> jax.Array:
    """A hyperparameter before each of `steps` updates, `[steps]`."""
    zeros, zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
    offered = {"value": zero, "grad": zeros}
    for function in ("value_fn", "obj_fn"):
        offered[function] = lambda params: zero
    extra = {key: offered[key] for key in tx.declared_extra_args() if key in offered}

    def step(state, _):
        _, after = tx.update(zeros, state, params, **extra)
        return after, hyperparameters(tx, state)[name]

    return jax.lax.scan(step, tx.init(params), length=steps)[1]
