"""Random, Sobol and grid points, and what holds for every search."""

import itertools
import json
import warnings

import numpy as np
import pytest
from scipy.stats import qmc

from optfn import sweep
from optfn.sweep import Choice, Fixed, IntUniform, LogUniform, Uniform

SPACE = {
    "rate": LogUniform(1e-5, 1),
    "nesterov": True,
    "steps": IntUniform(0, 100),
    "decay": [0, 0.01, 0.1],
}
LISTS = {"a": [1, 2], "b": "x", "c": Choice(None, "y", 3)}
SEARCHES = {
    "random": (sweep.random(), SPACE),
    "sobol": (sweep.sobol(), SPACE),
    "grid": (sweep.grid(), LISTS),
    "optuna": (sweep.optuna_search(), SPACE),
}
searches = pytest.mark.parametrize(("search", "space"), SEARCHES.values(), ids=SEARCHES)


@searches
def test_asking_in_pieces_gives_the_same_points(search, space):
    whole = search.start(space, 6, seed=3).ask(100)
    session = search.start(space, 6, seed=3)
    pieces = [session.ask(count) for count in (2, 0, 3, 100, 1)]
    assert list(map(len, pieces)) == [2, 0, 3, 1, 0]
    assert list(itertools.chain(*pieces)) == whole
    assert all(list(point) == list(space) for point in whole)
    assert session.trials == 6


@searches
def test_more_trials_begin_with_the_same_points(search, space):
    assert search.start(space, 6, seed=3).ask(6)[:5] == search.start(space, 5, seed=3).ask(5)


@searches
def test_a_restored_session_goes_on(search, space):
    session = search.start(space, 6, seed=3)
    session.ask(3)
    session.tell(1, 0.5, "ok", [(1, 0.7), (2, 0.5)])
    state = json.loads(json.dumps(session.state()))
    rest = session.ask(6)
    session.flush()
    again = search.start(space, 6, seed=3)
    again.restore(state)
    assert again.ask(6) == rest and len(rest) == 3
    short = search.start(space, 2, seed=3)
    short.restore(state)
    assert short.ask(1) == short.ask(1) == []


@pytest.mark.parametrize("name", ["random", "sobol", "optuna"])
def test_the_seed_counts(name):
    search, space = SEARCHES[name]
    assert search.start(space, 4, seed=0).ask(4) != search.start(space, 4, seed=1).ask(4)


def test_random_points_are_those_of_the_seed_and_the_number():
    points = sweep.random().start(SPACE, 5, seed=7).ask(5)
    for number, point in enumerate(points):
        u = np.random.default_rng([7, number]).random(3)
        assert point["rate"] == SPACE["rate"].at(u[0])
        assert point["steps"] == int(u[1] * 101)
        assert point["decay"] == SPACE["decay"][int(u[2] * 3)]
        assert point["nesterov"] is True


@pytest.mark.parametrize("trials", [1, 8, 13])
def test_sobol_points_are_scipys(trials):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's own, on a number that is no power of two
        rows = qmc.Sobol(2, rng=np.random.default_rng(5)).random(trials)
    space = {"x": Uniform(0, 1), "f": 1, "y": Uniform(-1, 1)}
    points = sweep.sobol().start(space, trials, seed=5).ask(trials)
    np.testing.assert_array_equal([p["x"] for p in points], np.float32(rows[:, 0]))
    np.testing.assert_array_equal([p["y"] for p in points], np.float32(2 * rows[:, 1] - 1))


def test_sobol_points_fill_each_axis():
    points = sweep.sobol().start({"x": Uniform(0, 1), "n": IntUniform(0, 15)}, 16, 0).ask(16)
    assert sorted(int(16 * p["x"]) for p in points) == list(range(16))
    assert sorted(p["n"] for p in points) == list(range(16))


@pytest.mark.parametrize("search", [sweep.random(), sweep.sobol(), sweep.optuna_search()])
def test_a_space_may_be_all_fixed(search):
    assert search.start({"a": 1}, 2, 0).ask(5) == [{"a": 1}, {"a": 1}]
    assert search.start({}, 1, 0).ask(5) == [{}]


def test_a_grid_has_every_combination():
    expected = [
        dict(zip("abc", values, strict=True))
        for values in itertools.product([1, 2], "x", [None, "y", 3])
    ]
    session = sweep.grid().start(LISTS, None, 0)
    assert session.trials == 6 and session.ask(99) == expected
    assert sweep.grid().start(LISTS, 4, 0).ask(99) == expected[:4]
    assert sweep.grid().start({"a": Fixed(1)}, None, 0).ask(9) == [{"a": 1}]
    assert sweep.grid().start({}, None, 0).ask(9) == [{}]


BAD = {
    "a continuous axis": (
        lambda: sweep.grid().start({"a": [1], "b": Uniform(0, 1)}, None, 0),
        "grid() needs a list of values for each name, but the space's 'b' is Uniform(low=0.0",
    ),
    "a large grid": (
        lambda: sweep.grid().start(LISTS, 7, 0),
        "trials=7 is more than the 6 combinations of the grid",
    ),
    "no grid": (lambda: sweep.grid().start(LISTS, 0, 0), "trials must be a whole number above 0"),
    "no end": (lambda: sweep.random().start(SPACE, None, 0), "random() has no end"),
    "no end of Sobol": (lambda: sweep.sobol().start(SPACE, None, 0), "sobol() has no end"),
    "no end of Optuna": (
        lambda: sweep.optuna_search().start(SPACE, None, 0),
        "optuna_search() has no end",
    ),
    "half a trial": (lambda: sweep.random().start(SPACE, 1.5, 0), "trials must be a whole number"),
    "seed": (lambda: sweep.random().start(SPACE, 1, -1), "seed must be a whole number of at least"),
    "no seed": (lambda: sweep.sobol().start(SPACE, 1, None), "seed must be a whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence(name):
    call, sentence = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value)
