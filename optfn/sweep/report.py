"""A sweep as one page for the browser."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from optfn.core.text_table import number
from optfn.sweep import plot
from optfn.sweep.importance import FEWEST, differing, searched, trials_that_ran, trials_where
from optfn.sweep.one_of import OneOf, applying, coordinates
from optfn.sweep.pareto import pareto as pareto_of
from optfn.sweep.replaced import replaced
from optfn.sweep.trials import Trials

MOST_ROWS = 500
SHOWN = 0.9  # of the trials, whose scores the curves show

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em;
       color: #222; background: #fff; }
h1, h2 { font-weight: 600; line-height: 1.2; }
h2 { margin-top: 2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1.5em; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: .8em 1em; white-space: pre-wrap; }
.wide { overflow-x: auto; max-height: 32em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25em .8em; text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: #eee; cursor: pointer; }
tbody tr:nth-child(even) { background: #f8f8f8; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30em, 100%), 1fr));
            gap: 1em; }
figure { margin: 0; }
figure.full { grid-column: 1 / -1; }
img { width: 100%; height: auto; }
figcaption { color: #666; font-size: 14px; }
"""

# A click on a head sorts the rows by that column, and once more turns them over.
SORT = """
document.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], rows = [...body.rows];
  const key = row => { const cell = row.cells[column].dataset.value;
                       return cell === "" || isNaN(cell) ? cell : Number(cell); };
  const up = head.dataset.up !== "true";
  head.dataset.up = up;
  rows.sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0)
                                        : typeof x === "number" ? -1 : 1;
    return up ? order : -order; });
  body.append(...rows);
}));
"""


def report(
    result: Trials,
    path: str | os.PathLike,
    *,
    title: str = "",
    pareto: Mapping[str, str] | None = None,
) -> Path:
    """Writes a sweep as one page for the browser: settings, the best trial, pictures, all trials.

        sweep.report(result, "sweep.html")

    The page is one file that needs no other and no network: send it, or keep it beside the run. A
    conditional space gets the pictures of each option.

    Args:
        result: a result of `sweep.run`.
        path: the file; one that is there is replaced once the page is complete.
        title: the page's title; by default "Sweep: " and the score.
        pareto: directions of several scores, as for `sweep.pareto`: the page lists the trials that
            no other beats in all of them, and of two scores has a picture; None does not.

    Returns:
        The path of the file.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: as `sweep.pareto`.
    """
    path = Path(path)
    if not find_spec("matplotlib"):
        raise ImportError("sweep.report(...) needs matplotlib: pip install matplotlib.")
    title = title or f"Sweep: {result.task.objective}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _settings(result),
        "<h2>The best trial</h2>",
        _best(result),
        *(_front(result, pareto) if pareto is not None else ()),
        *_pictures(result),
        "<h2>All trials</h2>",
        _table(result),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SORT}</script>\n</body>\n</html>\n"
    )
    with replaced(path) as file:
        file.write(page)
    return path


def _listed(facts: Iterable[tuple[str, Any]]) -> str:
    items = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts)
    return f"<dl>{''.join(items)}</dl>"


def _settings(result: Trials) -> str:
    plan = result.plan
    space = {key: f"{d!r}" for key, d in coordinates(plan.space).items()}
    ended = dict(zip(*np.unique(result.status, return_counts=True), strict=True))
    better = "higher" if result.task.sign < 0 else "lower"
    constraints = {"constraints": f"{plan.constraints!r}"} if plan.constraints else {}
    return (
        _listed(
            {
                "score": f"{result.task.objective}, {better} is better",
                "trials": f"{len(result)}: " + ", ".join(f"{n} {s}" for s, n in ended.items()),
                "steps of a run": f"{plan.steps}, judged every {plan.segment}",
                "seeds": result.scores.shape[1],
                "steps of all lanes": f"{result.lane_steps:,}",
                "lanes": f"{plan.lanes}, mode {result.mode}",
                "seed": plan.seed,
                "seconds": f"{result.seconds:.1f}",
                **constraints,
            }.items()
        )
        + "<h2>The space</h2>"
        + _listed(space.items())
    )


def _best(result: Trials) -> str:
    number_of_best = int(result.order()[0])
    best = result.trial(number_of_best)
    if not np.isfinite(best.score):
        return "<p>No trial has a finite score.</p>"
    if not best.feasible:
        return "<p>No trial with a finite score keeps all constraints.</p>"
    spread = "" if np.isnan(best.spread) else f" ± {number(best.spread)}"
    facts = [  # of which two may have the same name
        ("trial", f"{best.trial}, {best.status} after {best.steps} steps"),
        (result.task.objective, number(best.score) + spread),
        *((name, number(value)) for name, value in best.values.items()),
    ]
    made = "" if best.optimizer is None else f"<pre>{escape(repr(best.optimizer))}</pre>"
    return _listed(facts) + made


def _front(result: Trials, directions: Mapping[str, str]) -> Iterator[str]:
    """The trials that no other beats in all of several scores."""
    front = pareto_of(result, directions)
    names = ", ".join(f"{name} ({direction})" for name, direction in directions.items())
    yield f"<h2>Beaten by none in {escape(names)}</h2><pre>{escape(front.table())}</pre>"
    if len(directions) == 2:
        caption = "Every trial that ran to the end, by both scores."
        yield _picture(lambda ax: plot.pareto(front, ax).legend(), caption, wide=True)


def _pictures(result: Trials) -> Iterator[str]:
    yield "<h2>Pictures</h2>"
    yield '<div class="pictures">'
    losses = result.losses[np.isfinite(result.losses)]
    if losses.size:
        cap = result.task.sign * float(np.quantile(losses, SHOWN))
        yield _picture(
            lambda ax: plot.curves(result, ax=ax, cap=cap).legend(
                loc="upper left", bbox_to_anchor=(1.01, 1)
            ),
            "The score of every trial; what is worse than nine tenths of them lies on the edge.",
            wide=True,
        )
    if len(result.copied_from):
        for name in _searched(result, {}):
            yield _picture(
                lambda ax, name=name: plot.lineage(result, name, ax), "Who copied whom.", wide=True
            )
    yield "</div>"
    for where in _options(result):
        if where:
            yield f"<h2>{escape(', '.join(f'{k}: {v}' for k, v in where.items()))}</h2>"
        yield '<div class="pictures">'
        yield from _pictures_of(result, where)
        yield "</div>"


def _options(result: Trials) -> list[dict[str, Any]]:
    """The values by which the trials have one space: options of a conditional one, best first."""
    found = {}
    for point in (result.points[i] for i in result.order()):
        chosen = [n for n, d in applying(result.plan.space, point).items() if isinstance(d, OneOf)]
        found[tuple((name, point[name]) for name in chosen)] = None
    return list(map(dict, found))


def _searched(result: Trials, where: Mapping[str, Any]) -> list[str]:
    space = searched(result, trials_where(result, where, "report"))
    return [name for name, d in space.items() if not isinstance(d, OneOf)]


def _pictures_of(result: Trials, where: Mapping[str, Any]) -> Iterator[str]:
    """The pictures of the trials with some values."""
    searched, trials = _searched(result, where), trials_where(result, where, "report")
    if not np.isfinite(result.losses[trials]).any():
        yield "<p>None of these trials has a finite score.</p>"
        return
    for name in searched:

        def sensitivity(ax: Any, name: str = name) -> None:
            plot.sensitivity(result, name, ax, where=where).legend(fontsize="small")

        yield _picture(sensitivity, f"The score against {name.replace('_', ' ')}.")
    if len(searched) > 1:
        yield _picture(
            lambda ax: plot.parallel(result, searched, ax, where=where).legend(
                loc="upper left", bbox_to_anchor=(1.1, 1)
            ),
            "Which values go together; the best trials are in color.",
            wide=True,
        )
        ran = trials_that_ran(result, where, "report")
        several = len(ran) >= FEWEST and differing(result, ran)
        if several and find_spec("optuna") and find_spec("sklearn"):
            yield _picture(
                lambda ax: plot.importance(result, ax, where=where),
                "How much each hyperparameter decides about a trial.",
            )


def _picture(draw: Callable[[Any], Any], caption: str, *, wide: bool = False) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5) if wide else (6, 4), layout="constrained")
    draw(figure.subplots())
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    text = base64.b64encode(data.getvalue()).decode()
    kind = ' class="full"' if wide else ""
    caption = escape(caption)
    return (
        f'<figure{kind}><img src="data:image/png;base64,{text}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(result: Trials) -> str:
    columns = result.columns()
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    shown = result.order()[:MOST_ROWS]
    rows = ("".join(_cell(column[i]) for column in columns.values()) for i in shown)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    more = len(result) - len(shown)
    note = f"<p>{more} worse trials are left out; `to_csv` has all.</p>" if more else ""
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>{note}'


def _cell(value: Any) -> str:
    text = "" if value is None else number(value)
    exact = "" if value is None else repr(value) if isinstance(value, float) else str(value)
    return f'<td data-value="{escape(exact)}">{escape(text)}</td>'
