"""The page of a sweep, how much a hyperparameter matters, and pictures of conditional spaces."""

import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import optfn
from optfn import sweep
from optfn.sweep import plot
from optfn.sweep.importance import trials_where

TASK = sweep.Task(
    lambda key: jnp.ones(2), lambda params, batch: jnp.sum(jnp.float32([1, 4]) * params**2) / 2
)
RATE = sweep.LogUniform(1e-4, 30.0)
SETTINGS = {"trials": 16, "steps": 8, "segment": 2, "mode": "vmap", "max_loss": 100.0}


def decayed(learning_rate, decay):
    return optfn.chain(optfn.add_decayed_weights(1e-6 * decay), optfn.sgd(learning_rate))


@pytest.fixture(scope="module")
def plain():
    return sweep.run(
        TASK, decayed, {"learning_rate": RATE, "decay": sweep.Uniform(0, 1)}, **SETTINGS
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def conditional(folder):
    options = {
        "plain": (optfn.sgd, {"learning_rate": RATE}),
        "<momentum>": (optfn.sgd, {"learning_rate": RATE, "momentum": sweep.Uniform(0.5, 0.95)}),
    }
    return sweep.run(TASK, sweep.OneOf("optimizer", options), {}, checkpoint=folder, **SETTINGS)


@pytest.fixture(scope="module")
def loaded(conditional, folder):
    return sweep.Result.load(folder)


class Page(HTMLParser):
    """The tags of a page, its text and its tables' rows; raises where tags are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.links = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", ["plain", "conditional", "loaded"])
def test_the_page_needs_no_other_file_and_has_every_trial(name, request, tmp_path):
    result = request.getfixturevalue(name)
    path = result.report(tmp_path / "sweep.html", title="a < b & c")
    assert list(tmp_path.iterdir()) == [path]
    text = path.read_text()
    page = Page(text)
    assert page.texts.count("a < b & c") == 2  # the title and the head, escaped
    assert all(link.startswith("data:") for link in page.links)
    assert page.tags.count("tr") == 1 + len(result)
    scores = re.findall(r'data-value="([^"]*)"', text)
    for i in range(len(result)):
        assert repr(result.trial(i).score) in scores
    assert (page.tags.count("pre") == 1) == (name != "loaded")
    if name != "loaded":
        assert repr(result.best().optimizer).split("(")[0] in "".join(page.texts)
    # curves, and for each option a picture of each hyperparameter, and two of several
    wanted = {"plain": 1 + 2 + 2, "conditional": 1 + 1 + 2 + 2, "loaded": 1 + 1 + 2 + 2}
    assert page.tags.count("img") == wanted[name]


def test_the_page_shows_the_better_options_first(conditional, tmp_path):
    page = conditional.report(tmp_path / "sweep.html").read_text()
    options = list(dict.fromkeys(t.values["optimizer"] for t in conditional.top(len(conditional))))
    places = [page.index(f"<h2>optimizer: {escape(option)}") for option in options]
    assert len(places) == 2 and places == sorted(places)
    assert options[0] != conditional.points[0]["optimizer"], "the first is not the best here"


def test_options_that_are_arrays_or_functions(tmp_path):
    """Of a maximized score, in options whose fixed values are arrays too, with a score's name."""
    arrays, task = [np.zeros(2), np.ones(2)], replace(TASK, maximize="loss")
    space = {"loss": [0.1, 0.2], "mask": arrays, "f": [jnp.tanh, jnp.sin]}
    options = {
        name: (lambda loss, mask, f, fixed: optfn.sgd(loss), space | {"fixed": np.arange(3) + i})
        for i, name in enumerate("ab")
    }
    result = sweep.run(task, sweep.OneOf("kind", options), {}, **SETTINGS | {"trials": 24})
    text = sweep.report(result, tmp_path / "sweep.html").read_text()
    best = result.best()
    assert f"<dt>loss</dt><dd>{best.score:.4g}</dd>" in text
    assert f"<dt>loss</dt><dd>{best.values['loss']:.4g}</dd>" in text
    assert set(sweep.importances(result)) == {"kind", "loss", "mask", "f"}
    chosen = trials_where(result, {"mask": arrays[1], "f": jnp.sin}, "test")
    wanted = [i for i, p in enumerate(result.points) if p["mask"].all() and p["f"] is jnp.sin]
    assert chosen.tolist() == wanted


def test_a_page_that_cannot_be_written_leaves_what_was_there(plain, tmp_path, monkeypatch):
    path = tmp_path / "sweep.html"
    path.write_text("before")
    monkeypatch.setattr(plot, "parallel", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep.report(plain, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_of_diverged_trials_says_so(tmp_path):
    result = sweep.run(TASK, optfn.sgd, {"learning_rate": [1e30, 2e30]}, **SETTINGS | {"trials": 2})
    text = sweep.report(result, tmp_path / "sweep.html").read_text()
    assert "No trial has a finite score." in text
    assert "None of these trials has a finite score." in text


def test_the_rate_matters_and_what_does_next_to_nothing_does_not(plain):
    shares = sweep.importances(plain)
    assert list(shares) == ["learning_rate", "decay"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["learning_rate"] > 0.7
    assert sweep.importances(plain) == shares


def test_trials_that_never_ran_are_not_shown_as_diverged():
    """Of eight that ran, some diverged in their first step; one could not be made."""

    def made(learning_rate):
        if learning_rate == 2.0:
            raise ValueError("two")
        return optfn.sgd(learning_rate)

    rates = [0.01, 0.1, 0.2, 0.3, 1e38, 2e38, 3e38, 0.05, 2.0]
    space, settings = {"learning_rate": rates}, SETTINGS | {"trials": None, "search": sweep.grid()}
    result = sweep.run(TASK, made, space, **settings)
    assert (result.steps[4:7] == 0).all() and result.status[8] == "failed"
    assert set(sweep.importances(result)) == {"learning_rate"}
    ax = plot.sensitivity(result, "learning_rate", Figure().subplots())
    drawn = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() != "None")
    assert drawn == 8
    with pytest.raises(ValueError, match="none of these trials ran"):
        plot.curves(result, ax=ax, where={"learning_rate": 2.0})


def test_importances_of_an_option_are_of_its_own_space(conditional):
    with pytest.raises(ValueError, match="needs 8 trials that ran, found"):
        few = np.flatnonzero([p["optimizer"] == "plain" for p in conditional.points])
        points = [dict(p) for p in conditional.points]
        for i in few[4:]:
            points[i] |= {"optimizer": "<momentum>", "momentum": 0.5}
        sweep.importances(replace(conditional, points=points), where={"optimizer": "plain"})


def test_a_conditional_space_is_drawn_by_option(conditional):
    ax = Figure().subplots()
    plot.sensitivity(conditional, "momentum", ax, where={"optimizer": "<momentum>"})
    drawn = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() != "None")
    assert drawn == sum(point["optimizer"] == "<momentum>" for point in conditional.points)
    plot.sensitivity(conditional, "learning_rate", ax)  # all have it, with one range
    plot.sensitivity(conditional, "optimizer", Figure().subplots())
    with pytest.raises(ValueError, match=r"not all of these trials have 'momentum' .* where="):
        plot.sensitivity(conditional, "momentum", ax)
    with pytest.raises(ValueError, match=r"where=.*no trial has these values"):
        plot.curves(conditional, ax=ax, where={"optimizer": "adam"})
    with pytest.raises(ValueError, match="must name hyperparameters of the space, optimizer"):
        plot.curves(conditional, ax=ax, where={"optimiser": "plain"})


def test_a_curve_without_a_value_is_at_the_worse_edge(plain):
    lost = plain.status == "diverged"
    curves = {"loss": plain.curves["loss"].copy()}
    curves["loss"][np.flatnonzero(lost)[0]] = np.nan
    shown = curves["loss"][~lost]
    for task, edge in ((TASK, np.nanmax), (replace(TASK, maximize="loss"), np.nanmin)):
        result = replace(plain, curves=curves, plan=replace(plain.plan, task=task))
        ax = plot.curves(result, ax=Figure().subplots())
        crosses = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "x"]
        assert len(crosses) == lost.sum() and edge(shown) in crosses


def test_a_legend_tells_what_the_marks_mean(plain):
    _, labels = plot.sensitivity(
        plain, "learning_rate", Figure().subplots()
    ).get_legend_handles_labels()
    assert set(labels) == {"ran to the end", "ended early", "diverged"}
    ax = plot.sensitivity(plain, "learning_rate", Figure().subplots(), label="SGD")
    assert ax.get_legend_handles_labels()[1] == ["SGD"]
