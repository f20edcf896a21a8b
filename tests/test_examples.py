"""The examples run, their output says what it should, and what their pictures claim is so."""

import csv
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from donation import watched
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

import optfn

EXAMPLES = Path(__file__).parents[1] / "examples"


class Ran(NamedTuple):
    stdout: str
    folder: Path
    written: set[str]


# Without many devices, which no user has.
CHEAP = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)


def run(name: str, folder: Path, *arguments: str, xla_flags: str = "") -> Ran:
    """Runs a copy of an example as a user does, who has no strict settings but sees warnings.

    With the `CHEAP` flags of XLA it compiles in half the time, which most examples take to compile.
    The copy's default output and the working directory both lie inside `folder`, so that a file
    written to the wrong place is seen.
    """
    script = shutil.copy(EXAMPLES / f"{name}.py", folder)
    unwanted = ("XLA_FLAGS", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    environment["XLA_FLAGS"] = xla_flags
    command = [sys.executable, "-W", "error", script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return Ran(done.stdout, folder, files - {f"{name}.py"})


def load(name: str):
    """A fresh copy of an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_calls(monkeypatch, module, name: str) -> list:
    """Replaces a function of a module by one that also notes each call, that is, each trace."""
    function, calls = getattr(module, name), []

    def noted(*args):
        calls.append(None)
        return function(*args)

    monkeypatch.setattr(module, name, noted)
    return calls


def check_drawn(path: Path, *colors: str) -> None:
    """A PNG of reasonable size in which each color covers as much as a curve does."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    height, width, _ = pixels.shape
    assert height >= 250 and width >= 500
    for color in colors:
        near = np.abs(pixels - np.array(to_rgb(color))).max(-1) < 0.02
        assert near.any(axis=0).sum() > 0.1 * width, f"{color} is missing in {path.name}"


# Donation


def epoch_arguments(module, optimizer):
    """Of its `train_epoch`, as shapes."""
    data, _ = module.load_data(0)
    params = jax.eval_shape(module.Classifier().init, jax.random.key(0), data.images)
    return optimizer, params, jax.eval_shape(optimizer.init, params), data, jax.random.key(0)


def test_no_training_step_copies_what_it_donates(monkeypatch):
    donating = {path.stem for path in EXAMPLES.glob("*.py") if "donate_arg" in path.read_text()}
    assert donating == {"accumulate_gradients", "log_metrics", "train_digits", "train_text"}
    with watched(monkeypatch) as jitted:
        ways, log_metrics, digits, text = map(load, sorted(donating))
        data = ways.load_data()
        batches = jax.tree.map(lambda x: np.asarray(x)[None, : ways.BATCH_SIZE], data)
        params = jax.jit(ways.Classifier().init)(jax.random.key(0), data.images[:1])
        for way in ways.WAYS.values():
            ways.train(way, params, batches)
        log_metrics.train_epoch.lower(*epoch_arguments(log_metrics, log_metrics.make_optimizer(20)))
        digits.train_epoch.lower(*epoch_arguments(digits, optfn.adam(0.001)))
        texts = text.help_texts()
        model = text.Transformer(texts.vocabulary, 1)
        params = jax.jit(model.init)(jax.random.key(0), texts.train[None, : text.CONTEXT])
        text.train("Muon", text.optimizers(1)["Muon"], model, params, texts, 1)
    assert len(jitted) == len(ways.WAYS) + 3
    for step in jitted:
        # Params that the backward pass still reads XLA copies, whatever the optimizer.
        step.check("state")


# train_digits


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return run("train_digits", folder, "--quick", "--output", "here/figure.png")


@pytest.fixture(scope="module")
def digits():
    return load("train_digits")


ROW = re.compile(
    r"^\s*(?P<algorithm>\S.*?) {2,}(?P<rate>[\d.]+), (?P<kind>constant|decayed)"
    r" +(?P<loss>\d\.\d{4}) +(?P<accuracy>\d+\.\d) +(?P<seconds>\d+\.\d)\s*$",
    re.MULTILINE,
)


@pytest.mark.slow
def test_digits_prints_a_row_for_every_algorithm_and_rate(digits_run, digits):
    rows = [match.groupdict() for match in ROW.finditer(digits_run.stdout)]
    assert [(row["algorithm"], row["kind"]) for row in rows] == [
        (algorithm, kind) for algorithm in digits.ALGORITHMS for kind in ("constant", "decayed")
    ]
    for row in rows:
        assert float(row["rate"]) == digits.ALGORITHMS[row["algorithm"]][1]
        # Guessing gives log(10) = 2.3 nats and 10 %; five epochs give 0.14 to 0.23 and 92 to 95.
        assert float(row["loss"]) < 0.5
        assert 85 < float(row["accuracy"]) <= 100


@pytest.mark.slow
def test_digits_reports_progress_without_a_terminal(digits_run):
    rows = [match.groupdict() for match in ROW.finditer(digits_run.stdout)]
    lines = digits_run.stdout.splitlines()
    for row in rows:
        name = f"{row['algorithm']}, {row['kind']} rate"
        assert lines.count(f"{name}: final loss {row['loss']}") == 1
    assert "\x1b" not in digits_run.stdout


@pytest.mark.slow
def test_digits_writes_its_figure_and_nothing_else(digits_run, digits):
    assert digits_run.written == {"here/figure.png"}
    check_drawn(digits_run.folder / "here/figure.png", *digits.COLORS.values())


@pytest.mark.parametrize("epochs", ["0", "-3"])
def test_digits_refuses_fewer_than_one_epoch(digits, monkeypatch, capsys, epochs):
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--epochs", epochs])
    with pytest.raises(SystemExit, match="2"):
        digits.main()
    assert "--epochs must be at least 1" in capsys.readouterr().err


def train_digits(digits, epochs, seed=0, terminal=False):
    """The runs, and what the terminal showed."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with digits.progress_bars(console) as progress:
        runs = digits.train_all(epochs, seed, progress)
    return runs, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_digits_runs_of_an_algorithm_share_one_program(digits, monkeypatch):
    traces = count_calls(monkeypatch, digits, "loss_fn")
    monkeypatch.setattr(digits, "ALGORITHMS", {"gradient descent": (optfn.sgd, 0.5)})
    with monkeypatch.context() as only_constant:
        only_constant.setattr(digits, "DECAY_RATES", {"constant": 0.0})
        train_digits(digits, epochs=1)
    first = len(traces)
    assert first > 0

    (constant, decayed), shown = train_digits(digits, epochs=4, terminal=True)
    assert len(traces) == first
    assert constant.rates == [0.5] * 4
    np.testing.assert_allclose(decayed.rates, 0.5 / (1 + 0.2 * np.arange(4)), rtol=1e-6)
    assert len(constant.losses) == 5 and constant.losses[-1] < constant.losses[0] / 2
    assert decayed.losses[:2] == constant.losses[:2], "the rates of the first epoch are equal"
    assert decayed.losses[2:] != constant.losses[2:]
    for run in (constant, decayed):
        assert f"epoch 4/4 loss {run.losses[-1]:.4f}" in shown

    again, _ = train_digits(digits, epochs=4)
    assert [run.losses for run in again] == [constant.losses, decayed.losses]
    other_seed, _ = train_digits(digits, epochs=4, seed=1)
    assert other_seed[0].losses != constant.losses

    monkeypatch.setattr(digits, "ALGORITHMS", {"momentum": (optfn.momentum, 0.5)})
    train_digits(digits, epochs=1)
    assert len(traces) > first


def test_digits_figure_holds_every_run(digits):
    names = [(a, kind) for a in digits.ALGORITHMS for kind in digits.DECAY_RATES]
    runs = [
        digits.Run(*name, [2.0, 1.0, 0.1 * (i + 1)], [0.5, 0.1 * (i + 1)], 0.9, 1.0)
        for i, name in enumerate(names)
    ]
    axes = digits.draw(runs).axes
    for i, (losses, rates) in enumerate(zip(axes[:4], axes[4:], strict=True)):
        both = runs[2 * i : 2 * i + 2]
        for run, line, stairs in zip(both, losses.lines, rates.patches, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), list(enumerate(run.losses)))
            np.testing.assert_array_equal(stairs.get_data().values, run.rates)
            np.testing.assert_array_equal(stairs.get_data().edges, [0, 1, 2])
            assert line.get_color() == digits.COLORS[run.kind]
            assert to_rgb(stairs.get_edgecolor()) == to_rgb(digits.COLORS[run.kind])
        assert losses.get_title() == list(digits.ALGORITHMS)[i]
        assert rates.get_xlabel() == "epoch"
        assert losses.get_yscale() == rates.get_yscale() == "log"
    assert axes[0].get_ylabel() == "training loss (nats)"
    assert axes[4].get_ylabel() == "learning rate"
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["constant rate", "decayed rate"]


def test_digits_are_standardised_by_the_training_images(digits):
    train_data, test_data = digits.load_data(seed=3)
    # The mean of 86,208 entries of size one, in float32.
    assert abs(float(train_data.images.mean())) < 1e-5
    assert float(train_data.images.std()) == pytest.approx(1, abs=1e-5)
    assert abs(float(test_data.images.mean())) > 1e-5
    assert not np.array_equal(digits.load_data(seed=4)[1].labels, test_data.labels)


# accumulate_gradients


@pytest.fixture(scope="module")
def ways():
    return load("accumulate_gradients")


WAY = re.compile(
    r"^\s*(?P<way>\S.*?) {2,}(?P<images>\d+) +(?P<calls>\d+) +(?P<memory>\d+)"
    r" +(?P<loss>\d\.\d{4}) +(?P<difference>\d\.\de[+-]\d\d)\s*$",
    re.MULTILINE,
)


@pytest.mark.slow
def test_accumulation_takes_the_steps_of_the_whole_batch_in_less_memory(tmp_path, ways):
    ran = run("accumulate_gradients", tmp_path, "--quick", "--output", "here/figure.png")
    rows = {row["way"]: row.groupdict() for row in WAY.finditer(ran.stdout)}
    assert list(rows) == list(ways.WAYS)
    for name in ("accumulate", "microbatch"):
        # Twenty steps, each of which multiplies a rounding of 6e-8 by little.
        assert float(rows[name]["difference"]) < 1e-4
        assert rows[name]["loss"] == rows["whole batch"]["loss"]
        assert 3 * int(rows[name]["memory"]) < int(rows["whole batch"]["memory"])
    assert float(rows["one micro-batch"]["difference"]) > 0.1
    assert ran.written == {"here/figure.png"}
    check_drawn(ran.folder / "here/figure.png", *ways.COLORS.values())


def test_figure_of_accumulation_holds_every_run(ways):
    runs = {
        name: ways.Run(np.array([2.0, 1.0, i + 0.5]), 1024 * (i + 1))
        for i, name in enumerate(ways.WAYS)
    }
    losses, memory = ways.draw(runs).axes
    for line, (name, ran) in zip(losses.lines, runs.items(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), list(enumerate(ran.losses)))
        assert (line.get_label(), line.get_color()) == (name, ways.COLORS[name])
    assert [bar.get_width() for bar in memory.patches] == [4, 3, 2, 1]
    assert [label.get_text() for label in memory.get_yticklabels()] == list(runs)[::-1]


def test_accumulation_refuses_fewer_than_one_step(ways, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accumulate_gradients.py", "--steps", "0"])
    with pytest.raises(SystemExit, match="2"):
        ways.main()
    assert "--steps must be at least 1" in capsys.readouterr().err


# train_float16


@pytest.fixture(scope="module")
def float16():
    return load("train_float16")


@pytest.mark.slow
def test_float16_trains_with_a_scaled_loss_and_not_without(tmp_path, float16):
    ran = run("train_float16", tmp_path, "--quick", "--output", "here/figure.png")
    row = re.compile(r"^  (\S.*?) {2,}(\d+) +(\d\.\d{4}) +(\d+\.\d) +(\d+) +2\^(\d+)", re.M)
    full, plain, scaled = ([float(x) for x in found[1:]] for found in row.findall(ran.stdout))
    # Zeros in the first gradient (%), loss, accuracy (%), skipped steps, last scale.
    assert plain == [100, 2.3026, 10.0, 0, 0], "log(10) and a guess"
    assert full[0] == scaled[0] == 0
    assert full[1] < 2 and scaled[1] < 2
    assert full[3] == 0 and 3 <= scaled[3] <= 20
    assert 10 < scaled[4] < 24
    assert ran.written == {"here/figure.png"}
    check_drawn(tmp_path / "here/figure.png", *float16.COLORS.values())


def test_float16_first_gradients_are_too_small_for_it(float16):
    data, _ = float16.load_data(seed=0)
    params = jax.jit(float16.Classifier(jnp.float32).init)(jax.random.key(0), data.images)
    grads = jax.jit(jax.grad(lambda p: float16.loss_fn(p, data, jnp.float32)[0]))(params)
    sizes = np.concatenate([np.abs(x).ravel() for x in jax.tree.leaves(grads)])
    assert sizes.max() < float(jnp.finfo(jnp.float16).smallest_subnormal)
    assert 1e-10 < np.median(sizes) < 1e-8


# log_metrics


@pytest.mark.slow
def test_log_has_a_row_for_every_step_and_says_what_happened(tmp_path):
    ran = run("log_metrics", tmp_path, "--quick", "--output", "here/log.csv")
    assert ran.written == {"here/log.csv"}
    with (tmp_path / "here/log.csv").open() as file:
        names = next(csv.reader(file))
        log = optfn.Metrics(zip(names, np.loadtxt(file, delimiter=",").T, strict=True))
    steps = 3 * (1347 // 64)
    np.testing.assert_array_equal(log["step"], np.arange(1, steps + 1))
    rate = optfn.schedules.warmup_cosine(0.01, warmup_steps=steps // 10, total_steps=steps)
    rates = jax.vmap(rate)(jnp.arange(steps))
    np.testing.assert_allclose(log["learning_rate"], rates, rtol=1e-5, atol=1e-9)

    norm, factor = log["grad_norm"], log["clip_by_global_norm.factor"]
    clipped = norm > 1.0
    assert 0 < clipped.sum() < steps
    np.testing.assert_allclose(factor, 1 / np.maximum(norm, 1), rtol=1e-5)
    np.testing.assert_array_equal(log["clip_by_global_norm.hits"], np.cumsum(clipped))
    ratio = log["update_norm"] / log["param_norm"]
    np.testing.assert_allclose(log["update_ratio"], ratio, rtol=1e-5)

    epochs = re.findall(
        r"^epoch (\d)/3: loss (\d\.\d{4}), gradient norm (\d\.\d{4})$", ran.stdout, re.M
    )
    told = np.asarray(epochs, float)
    means = [log[name].reshape(3, -1).mean(1) for name in ("loss", "grad_norm")]
    np.testing.assert_allclose(told, np.stack([[1, 2, 3], *means], axis=1), atol=1e-4)
    found = re.search(r"(\d+) gradients clipped; test accuracy (\d+\.\d) %", ran.stdout)
    assert found and int(found[1]) == clipped.sum()
    # Guessing gives 10 %; three epochs give about 95.
    assert float(found[2]) > 85
    assert f"\n  {steps:>4} " in ran.stdout and "\x1b" not in ran.stdout


# finetune_groups


def test_finetuning_leaves_frozen_leaves_as_they_were_and_holds_no_state_for_them(tmp_path):
    ran = run("finetune_groups", tmp_path, "--quick", xla_flags=CHEAP)
    row = re.compile(r"^  (\S.*?) {2,}(\d+) +(\d+) +(\d\.\d{4}) +(\d+\.\d)\s*$", re.M)
    rows = {way: [float(x) for x in numbers] for way, *numbers in row.findall(ran.stdout)}
    whole = 3 * (64 * 64 + 64) + 64 * 10 + 10
    trained = {
        "from scratch": whole,
        "one rate": whole,
        "frozen backbone": 64 * 10 + 10,
        "falling rates": whole,
        "groups": 64 * 64 + 64 + 64 * 10 + 10,
    }
    assert {way: numbers[0] for way, numbers in rows.items()} == trained
    assert {way: numbers[1] for way, numbers in rows.items()} == {
        way: 2 * count for way, count in trained.items()
    }
    for way in ("frozen backbone", "falling rates", "groups"):
        # Twenty images: from scratch the loss is far above that of a guess, log(10) = 2.3.
        assert rows[way][2] < 1.6 < rows["from scratch"][2]
        assert rows[way][3] > 60
    assert not ran.written


# plot_lecture


@pytest.fixture(scope="module")
def lecture():
    return load("plot_lecture")


@pytest.fixture(scope="module")
def walks(lecture):
    return lecture.zig_zag(steps=60)


@pytest.fixture(scope="module")
def ball(lecture):
    return lecture.noise_ball(seeds=64, epochs=20)


def test_lecture_writes_its_pictures_and_nothing_else(tmp_path, lecture):
    ran = run("plot_lecture", tmp_path, "--quick", "--output", "here", xla_flags=CHEAP)
    names = ["zig_zag", "noise_ball", "schedules"]
    assert ran.stdout.split() == [w for n in names for w in ("Figure:", f"here/{n}.png")]
    assert ran.written == {f"here/{name}.png" for name in names}
    for name in names:
        check_drawn(tmp_path / "here" / f"{name}.png", lecture.BLUE, lecture.VERMILLION)


def steep(walks, name):
    """y at the smaller and at the larger rate."""
    return walks[name][..., 1]


def sign_changes(y):
    return int((y[1:] * y[:-1] < 0).sum())


def test_gradient_descent_goes_as_theory_says(walks, lecture):
    for path, rate in zip(walks["gradient descent"], (0.19, 0.203), strict=True):
        steps = np.arange(61)[:, None]
        exact = lecture.START * (1 - rate * lecture.CURVATURE) ** steps
        # 60 float32 products, and a rate rounded to float32, whose error the steep axis multiplies
        # by 10 / |1 - 10 rate| = 11 in each: about 60 * 11 * 6e-8.
        np.testing.assert_allclose(path, exact, rtol=1e-4)


def test_gradient_descent_zig_zags_and_diverges(walks, lecture):
    low, high = steep(walks, "gradient descent")
    assert sign_changes(low) == sign_changes(high) == 60
    assert (np.diff(np.abs(low)) < 0).all()
    assert (np.diff(np.abs(high)) > 0).all()


def test_momentum_goes_as_its_recurrence_says(walks, lecture):
    for path, rate in zip(walks["momentum"], (0.203, 1.0), strict=True):
        point, v = lecture.START.copy(), np.zeros(2)
        exact = [point]
        for _ in range(60):
            v = 0.9 * v + 0.1 * lecture.CURVATURE * point
            point = point - rate * v
            exact.append(point)
        # Relative to the size of the path: y passes through zero.
        np.testing.assert_allclose(path, exact, atol=1e-4)


def test_momentum_damps_the_steep_axis_and_bears_a_larger_rate(walks, lecture):
    zig_zag, (same, larger) = steep(walks, "gradient descent")[1], steep(walks, "momentum")
    assert np.abs(same[30:]).max() < 0.25 * lecture.START[1] < 0.1 * np.abs(zig_zag[30:]).max()
    assert sign_changes(same) < 15
    assert np.abs(larger[1:]).max() < lecture.START[1]
    slow, fast = walks["gradient descent"][0, :, 0], walks["momentum"][1, :, 0]
    assert np.abs(fast[40:]).max() < np.abs(slow[40:]).min()


def test_rmsprop_is_as_fast_along_both_axes(walks, lecture):
    first = np.abs(walks["RMSprop"][:, 1] - walks["RMSprop"][:, 0])
    expected = np.array([[0.1], [0.3]]) / np.sqrt(0.1)
    np.testing.assert_allclose(first, np.broadcast_to(expected, (2, 2)), rtol=1e-5)
    low, high = steep(walks, "RMSprop")
    assert low.min() > -1e-6, "the smaller rate does not overshoot"
    losses = lecture.bowl(lecture.CURVATURE, walks["RMSprop"][1])
    lowest = losses.argmin()
    assert lowest > 0 and losses[lowest:].max() > 1e3 * losses[lowest], "the larger rate hops"
    assert sign_changes(high[lowest:]) > 0


def test_adam_is_as_fast_along_both_axes_and_swings(walks):
    first = np.abs(walks["Adam"][:, 1] - walks["Adam"][:, 0])
    np.testing.assert_allclose(first, [[0.2, 0.2], [0.6, 0.6]], rtol=1e-5)
    for y in steep(walks, "Adam"):
        assert y.min() < -0.3 and 2 <= sign_changes(y) < 15


def test_constant_rate_wanders_as_far_as_theory_says(ball, lecture):
    # A step p <- p - r h (p - m) with the mean m of B independent examples has the stationary
    # variance r h / (2 - r h) * var / B. 64 runs of 240 steps that forget within 3 steps: its
    # estimate is good to sqrt(2 * 6 / 15360) = 3 %.
    contraction = lecture.RATE * lecture.WEIGHT
    spread = np.asarray(lecture.make_examples()).var(0) / lecture.BATCH_SIZE
    settled = ball["constant"][:, 5 * lecture.STEPS_PER_EPOCH :].reshape(-1, 2)
    expected = contraction / (2 - contraction) * spread
    np.testing.assert_allclose(settled.var(0), expected, rtol=0.1)


def test_decayed_rate_ends_closer_to_the_minimum(ball, lecture):
    one_epoch = lecture.STEPS_PER_EPOCH
    distance = {kind: np.linalg.norm(paths, axis=-1).mean(0) for kind, paths in ball.items()}
    np.testing.assert_array_equal(
        ball["constant"][:, : one_epoch + 1], ball["decayed"][:, : one_epoch + 1]
    )
    constant, decayed = (distance[kind][-one_epoch:].mean() for kind in ("constant", "decayed"))
    # In theory the noise ball shrinks with the root of the rate, which fell to a twentieth.
    assert decayed < constant / 4
    closer = np.linalg.norm(ball["decayed"][:, -one_epoch:], axis=-1).mean(-1) < constant
    assert closer.all()


def test_schedules_are_the_lectures(lecture):
    epochs = np.arange(100.0)
    curves = dict(
        zip([f.title for f in lecture.FAMILIES], lecture.schedule_curves(epochs), strict=True)
    )
    values = {f.title: np.array(f.values)[:, None] for f in lecture.FAMILIES}
    formulas = {
        "inverse time": lambda d: 1 / (1 + d * epochs),
        "exponential": lambda d: d**epochs,
        "inverse root": lambda k: k / np.sqrt(epochs + 1),
        "staircase": lambda n: 0.5 ** np.floor(epochs / n),
        "cosine": lambda n: (1 + np.cos(np.pi * np.minimum(epochs / n, 1))) / 2,
    }
    for title, curve in curves.items():
        assert curve.shape == (3, 100)
        assert curve.min() >= 0 and 0.99 < curve.max() <= 1
        formula = formulas.pop(title.split(":")[0], None)
        if formula:
            # float32: powers and cosines to a few units of 6e-8, absolutely where they vanish.
            np.testing.assert_allclose(curve, formula(values[title]), rtol=1e-5, atol=1e-6)
    assert not formulas


def test_a_person_decays_the_rate_without_compiling_again(monkeypatch):
    lecture = load("plot_lecture")  # with nothing compiled yet
    traces = count_calls(monkeypatch, lecture, "batch_loss")
    assert lecture.decay_by_hand(epochs=3) == pytest.approx([0.3] * 3)
    first = len(traces)
    assert first > 0
    rates = np.array(lecture.decay_by_hand(epochs=100))
    assert len(traces) == first
    expected = np.repeat([0.3, 0.1, 0.03, 0.01], [20, 25, 30, 25])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


# fit_regression


def test_regression_finds_scipy_s_weights(tmp_path):
    done = run("fit_regression", tmp_path, "--quick", xla_flags=CHEAP)
    number = r" +([\d.e+-]+)"
    rows = re.findall(rf"^ *(\de-\d\d){number * 6} *$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["1e-01", "1e-04"]
    for _, loss, accuracy, steps, evaluations, theirs, difference in rows:
        assert 0.04 < float(loss) < 0.2
        assert 95 < float(accuracy) < 100
        assert int(steps) < int(evaluations) < 1.1 * int(theirs)
        # A gradient of 1e-8 over the least curvature, the penalty.
        assert float(difference) < 1e-3
    assert done.stdout.count("converged: value ") == 2
    assert not done.written


# tune_by_gradient


@pytest.fixture(scope="module")
def ridge():
    return load("tune_by_gradient")


def test_ridge_s_gradient_is_that_of_the_normal_equations(ridge, x64):
    data = ridge.load_data()
    penalties = jnp.asarray([-1.0, -3.0])

    def by_equations(log_penalties):
        x, y = data.fitted
        linear, others = jnp.exp(log_penalties) * len(x)
        diagonal = jnp.where(jnp.arange(x.shape[1]) < 10, linear, others)
        weights = jnp.linalg.solve(x.T @ x + jnp.diag(diagonal), x.T @ y)
        return ridge.error(weights, data.held_out)

    found = jax.jit(jax.value_and_grad(ridge.held_out))(penalties, data)
    wanted = jax.value_and_grad(by_equations)(penalties)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-9)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


def test_ridge_is_tuned_below_the_best_of_the_grid(tmp_path, ridge):
    ran = run(
        "tune_by_gradient", tmp_path, "--quick", "--output", "here/figure.png", xla_flags=CHEAP
    )
    assert ran.stdout.startswith("converged: value ")
    number = r" +([\d.]+)"
    row = re.compile(rf"^ *(.*\S){number * 5} *$", re.MULTILINE)
    rows = {name: list(map(float, numbers)) for name, *numbers in row.findall(ran.stdout)}
    errors = {name: numbers[3] for name, numbers in rows.items()}
    none, one, grid, gradients = errors.values()
    assert gradients <= grid <= one < none
    fits = {name: numbers[0] for name, numbers in rows.items()}
    assert fits["two, by gradients"] < fits["two, on the grid"] == 49
    assert ran.written == {"here/figure.png"}
    check_drawn(tmp_path / "here/figure.png", ridge.BLUE, ridge.VERMILLION)


# sweep_digits


@pytest.mark.slow
def test_sweep_of_digits_searches_six_optimizers_and_draws_them(tmp_path):
    done = run("sweep_digits", tmp_path, "--quick", "--output", "here/figure.png")
    assert done.stdout.split()[:4] == ["trial", "test_loss", "optimizer", "learning_rate"]
    assert done.stdout.count("48 trials: ") == 1
    rows = re.findall(
        r"^  (\w+) +test loss ([\d.]+) with learning_rate=", done.stdout, re.MULTILINE
    )
    assert sorted(name for name, _ in rows) == [
        *("Adam", "AdamW", "Lion", "Momentum", "RMSprop", "SGD")
    ]
    assert float(rows[0][1]) < 1, "a guess is log(10) = 2.3"
    assert done.written == {"here/figure.png", "here/figure.html"}
    page = (tmp_path / "here/figure.html").read_text()
    assert page.index("optimizer: ") > 0 and page.count("<tr>") == 49
    check_drawn(tmp_path / "here/figure.png")


# sweep_model


@pytest.mark.slow
def test_sweep_of_a_model_searches_its_shapes_too(tmp_path):
    done = run("sweep_model", tmp_path, "--quick", "--output", "here/figure.png")
    rows = re.findall(
        r"^ +(0\.\d{4}) +(16|64) +(32|128) +([\d.]+) +(AdamW|Momentum) ", done.stdout, re.MULTILINE
    )
    assert len(rows) == 8 and float(rows[0][0]) > 0.8, "a guess is 0.1"
    assert len({row[1:3] for row in rows}) > 1 and done.stdout.count("Result(24 trials: ") == 1
    assert done.written == {"here/figure.png"}
    check_drawn(tmp_path / "here/figure.png")


# sweep_flax_mnist


@pytest.mark.slow
def test_sweep_of_mnist_prints_the_best_and_draws_every_trial(tmp_path):
    done = run("sweep_flax_mnist", tmp_path, "--quick", "--output", "here/figure.png")
    head = "trial test_loss peak_rate warmup weight_decay steps status"
    assert done.stdout.splitlines()[0].split() == head.split()
    rows = re.findall(r"^ *(\d+) +([\d.]+) .* (\d+) +(ok|pruned)$", done.stdout, re.MULTILINE)
    assert {int(row[0]) for row in rows} == set(range(8))
    assert min(float(row[1]) for row in rows) < 1.9, "a guess is log(10) = 2.3"
    assert done.stdout.count("8 trials: ") == 1
    accuracy = re.search(r"the best: ([\d.]+) % of the test images", done.stdout)
    assert accuracy and float(accuracy[1]) > 30
    assert done.written == {"here/figure.png"}
    check_drawn(tmp_path / "here/figure.png")


# sweep_text


@pytest.mark.slow
def test_sweep_of_text_finds_a_schedule(tmp_path):
    done = run("sweep_text", tmp_path, "--quick", "--output", "here/figure.png")
    population, searched = done.stdout.split("random search\n")
    row = re.compile(r"^ *(\d+) +([\d.]+) +([\d.]+) +40 +ok$", re.MULTILINE)
    for part in (population, searched):
        rows = row.findall(part)
        assert {int(member) for member, _, _ in rows} == set(range(8))
        losses = [float(loss) for _, loss, _ in rows]
        assert losses == sorted(losses) and losses[0] < 3, "a guess is log(100) = 4.6"
    found = re.search(r"the schedule that was found: (.*)$", searched, re.MULTILINE)
    assert found
    steps = [int(step) for step in re.findall(r"from step (\d+)", found[1])]
    assert steps[0] == 0 and len(steps) > 1 and all(step % 4 == 0 for step in steps)
    assert done.written == {"here/figure.png"}
    check_drawn(tmp_path / "here/figure.png", "black")


# train_text


@pytest.mark.slow
def test_text_is_learned_with_both_optimizers(tmp_path):
    ran = run("train_text", tmp_path, "--quick", xla_flags=CHEAP)
    assert ran.written == {"output/train_text.png"}
    table, rest = ran.stdout.split("slot ")
    assert re.search(
        r"params/layers/attention/query/kernel +2 x 64 x 4 x 16 .* 2 of 64 x 64 ", table
    )
    assert re.search(r"params/head/kernel +64 x \d+ +float32 +- ", table)
    losses = re.findall(r"^(AdamW|Muon) +loss (\d\.\d+) after 20 steps", rest, re.MULTILINE)
    assert [name for name, _ in losses] == ["AdamW", "Muon"]
    assert all(float(loss) < np.log(96) - 1 for _, loss in losses)
    assert imread(tmp_path / "output/train_text.png").shape[1] > 1000
