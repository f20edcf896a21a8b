"""The range test: its runs are those of a training loop, and its rule is what it says."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from problem import START, X, Y, loss

import optfn
from optfn import sweep
from optfn.sweep import plot

TASK = sweep.Task(START, loss, data=(X, Y))
RANGE = {"low": 1e-4, "high": 10.0, "rates": 16, "steps": 20}


@pytest.fixture(scope="module")
def found():
    return sweep.find_learning_rate(TASK, optfn.sgd, **RANGE)


def losses_of(rate, steps=20):
    """Of gradient descent in float64, before each step."""
    w, b = np.ones(3), 0.0
    for _ in range(steps):
        error = X.astype(float) @ w + b - Y
        yield np.mean(error**2)
        w, b = w - rate * 2 * X.T @ error / 64, b - rate * 2 * error.mean()


def test_every_rate_has_a_run_of_its_own(found):
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 10, 16))
    assert found.start == pytest.approx(next(losses_of(0)), rel=1e-5)
    for rate, score in zip(found.rates, found.scores, strict=True):
        with np.errstate(over="ignore"):
            wanted = np.mean(list(losses_of(rate))[-2:])  # the last tenth of the steps
        if np.isfinite(score):
            np.testing.assert_allclose(score, wanted, rtol=1e-3)
        else:
            assert wanted > 1e20
    assert np.isinf(found.scores[-1])


def test_the_suggestion_is_the_middle_of_the_good_rates(found):
    gains = found.start - found.scores
    good = found.rates[gains >= 0.95 * gains.max()]
    assert found.good == (good[0], good[-1])
    assert found.suggestion == pytest.approx(np.sqrt(good[0] * good[-1]))
    # The largest curvature here is about 3: beyond 2 / 3 it diverges.
    assert 0.05 < found.suggestion < 0.6
    assert repr(found).startswith(f"LearningRates(suggestion={found.suggestion:.4g}, good=(")


def made_of(scores, tolerance=0.05, start=1.0):
    result = type("Result", (), {"task": TASK})()
    rates = np.geomspace(1e-3, 1e3, len(scores))
    return sweep.LearningRates(rates, np.asarray(scores), start, tolerance, result)


def test_good_rates_lie_together():
    found = made_of([0.02, 0.9, 0.03, 0.0, 0.04, 0.9, np.inf])
    assert found.good == pytest.approx((0.1, 10.0))
    assert found.suggestion == pytest.approx(1.0)
    assert made_of([0.02, 0.9, 0.03, 0.0, 0.04, 0.9, np.inf], 0.0).good == (1, 1)


def test_a_score_that_is_to_rise():
    task = sweep.Task(
        START,
        loss,
        data=(X, Y),
        evaluate=lambda params: {"closeness": -loss(params, (jnp.asarray(X), jnp.asarray(Y)))},
        maximize="closeness",
    )
    found = sweep.find_learning_rate(task, optfn.sgd, **RANGE)
    assert found.start < found.scores.max() < 0
    assert found.scores[-1] == -np.inf
    assert found.good[0] <= found.rates[np.argmax(found.scores)] <= found.good[1]


def test_it_is_drawn(found):
    figure = Figure()
    ax = plot.learning_rates(found, figure.subplots())
    assert ax.get_xscale() == "log"
    low, high = found.good
    span = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose([span.x0, span.x1], [low, high], rtol=1e-3)
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    np.testing.assert_array_equal(crosses.get_xdata(), found.rates[found.improvements < 0])
    assert "suggested" in ax.get_legend().get_texts()[1].get_text()
    figure.canvas.draw()


def test_the_end_of_the_range_is_told():
    with pytest.warns(UserWarning, match="reach the end of those tried, .* give another high."):
        sweep.find_learning_rate(TASK, optfn.sgd, low=1e-4, high=0.1, rates=7, steps=5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sweep.find_learning_rate(TASK, optfn.sgd(0.1)),
            TypeError,
            "find_learning_rate(optimizer=...) must be a function of learning_rate that returns an "
            "optimizer, such as optfn.adamw, found",
        ),
        (
            lambda: sweep.find_learning_rate(TASK, optfn.sgd, low=0.0),
            ValueError,
            "needs two or more rates from a low above 0 to a high above it, found 43 from 0.0 to",
        ),
        (
            lambda: sweep.find_learning_rate(TASK, optfn.sgd, tolerance=1.0),
            ValueError,
            "find_learning_rate(tolerance=...) must be from 0 to below 1, found 1.0.",
        ),
        (
            lambda: sweep.find_learning_rate(TASK, optfn.sgd, low=1e3, high=1e4, rates=2, steps=20),
            ValueError,
            "no rate from 1e+03 to 1e+04 improves 'loss' within 20 steps",
        ),
        (
            lambda: sweep.find_learning_rate(TASK, lambda lr: optfn.sgd(lr), **RANGE),
            TypeError,
            "learning_rate",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
