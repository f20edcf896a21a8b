"""Sweeps on disk: the same results after a kill, and no others' checkpoints."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sweep.problem import RATE, SCORED, START, STILL, X, Y, evaluate, init, loss, run, same

import optfn
from optfn import sweep
from optfn.sweep.checkpoint import _plain

FOLDER = Path(__file__).parent.parent

KINDS = {
    "asha": {"policy": sweep.asha(first=5), "keep_best": 2},
    "halving": {"policy": sweep.successive_halving(first=5, bracket=9)},
    "seeds": {"seeds": 2, "policy": sweep.asha(first=10), "confirm": sweep.Confirm(3, 2)},
}


def stopping_after(count):
    """A progress that ends the sweep as a crash would, after some segments."""
    seen = []

    def progress(_):
        seen.append(1)
        if len(seen) == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_that_was_cut_off_comes_to_the_same_results(tmp_path, kind):
    kwargs = {"trials": 20, "lanes": 8} | KINDS[kind]
    whole = run(RATE, **kwargs)
    for count in (1, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(
                RATE,
                checkpoint=tmp_path,
                checkpoint_every=2,
                progress=stopping_after(count),
                **kwargs,
            )
    result = run(RATE, checkpoint=tmp_path, **kwargs)
    same(result, whole)
    np.testing.assert_array_equal(result.confirmed, whole.confirmed)
    told = []
    same(run(RATE, checkpoint=tmp_path, progress=told.append, **kwargs), whole)
    assert len(told) <= 4  # confirmation alone is trained again


def test_kill_9_loses_nothing(tmp_path):
    """Of a sweep in another process, with which this one goes on."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(FOLDER)!r})
from sweep.problem import RATE, run
from optfn import sweep
count = []
def progress(p):
    count.append(1)
    if len(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run(RATE, trials=20, lanes=8, policy=sweep.asha(first=5), checkpoint={str(tmp_path)!r},
    checkpoint_every=1, progress=progress)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    kwargs, told = {"trials": 20, "lanes": 8, "policy": sweep.asha(first=5)}, []
    again = run(RATE, checkpoint=tmp_path, progress=told.append, **kwargs)
    whole = run(RATE, **kwargs)
    same(again, whole)
    assert len(told) < whole.lane_steps / (8 * 5)


def test_more_trials_go_on_with_a_sweep_that_is_over(tmp_path):
    kwargs = {"lanes": 8, "policy": sweep.asha(first=5)}
    few = run(RATE, trials=8, checkpoint=tmp_path, **kwargs)
    more = run(RATE, trials=16, checkpoint=tmp_path, **kwargs)
    np.testing.assert_array_equal(few.scores, more.scores[:8])
    assert len(more) == 16 and not (more.status == "stopped").any()
    with pytest.raises(ValueError, match="has 16 trials, more than trials=12"):
        run(RATE, trials=12, checkpoint=tmp_path, **kwargs)


def test_more_trials_take_the_lanes_there_were(tmp_path):
    run(RATE, STILL, trials=12, checkpoint=tmp_path)
    more = run(RATE, STILL, trials=20, checkpoint=tmp_path)
    same(more, run(RATE, STILL, trials=20, lanes=12))


def test_averages_of_the_params_come_back(tmp_path):
    settings = {"task": STILL, "optimizer": optfn.schedule_free_sgd, "trials": 8, "lanes": 8}
    whole = run(RATE, checkpoint=tmp_path, **settings)
    again = run(RATE, checkpoint=tmp_path, **settings)
    same(again, whole)
    np.testing.assert_array_equal(again.best().params["b"], whole.best().params["b"])


def test_choices_and_streams_come_back(tmp_path):
    """Options that JSON does not have, and a stream at its place."""
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]
    task = sweep.Task(START, loss, stream=batches, **SCORED)
    space = RATE | {"momentum": [None, 0.9], "nesterov": False}
    kwargs = {"task": task, "optimizer": optfn.sgd, "trials": 20, "lanes": 8, "keep_best": 3}
    whole = run(space, **kwargs)
    with pytest.raises(KeyboardInterrupt):
        run(space, checkpoint=tmp_path, checkpoint_every=3, progress=stopping_after(7), **kwargs)
    result = run(space, checkpoint=tmp_path, **kwargs)
    same(result, whole)
    assert result.points == whole.points and {p["momentum"] for p in result.points} == {None, 0.9}


@pytest.mark.parametrize("seed", [0, 6])
def test_a_population_whose_first_member_copied_goes_on(tmp_path, seed):
    kwargs = {"trials": 8, "policy": sweep.pbt(every=5), "keep_best": 8, "seed": seed}
    whole = run(RATE, **kwargs)
    assert whole.hyperparameter_history[0][-1][0] == 15
    with pytest.raises(KeyboardInterrupt):
        run(RATE, checkpoint=tmp_path, checkpoint_every=1, progress=stopping_after(4), **kwargs)
    result = run(RATE, checkpoint=tmp_path, **kwargs)
    same(result, whole)
    assert result.hyperparameter_history == whole.hyperparameter_history


def test_confirmation_leaves_the_checkpoint_alone(tmp_path):
    """Its runs are as many segments as there are between two checkpoints, or more."""
    kwargs = {"trials": 8, "confirm": sweep.Confirm(8, 3), "checkpoint": tmp_path}
    whole = run(RATE, checkpoint_every=1, **kwargs)
    same(run(RATE, checkpoint_every=1, **kwargs), whole)
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"3", "4"}


def test_a_confirmation_goes_on_where_it_was_cut_off(tmp_path):
    """Of trials with values of the task's own; a finished one is not trained again."""
    scaled = sweep.Task(START, lambda p, b, *, scale: scale * loss(p, b), data=(X, Y), **SCORED)
    space, kwargs = RATE | {"scale": [1, 0.5]}, {"trials": 8, "confirm": sweep.Confirm(4, 4)}
    whole = run(space, scaled, **kwargs)
    kwargs |= {"checkpoint": tmp_path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(space, scaled, progress=stopping_after(6), **kwargs)
    for segments in (7, 0):  # of the eight of the confirmation one was saved, then all
        seen = []
        again = run(space, scaled, progress=seen.append, **kwargs)
        same(again, whole)
        np.testing.assert_array_equal(again.confirmed, whole.confirmed)
        assert len(seen) == segments and again.lane_steps == whole.lane_steps


def test_optunas_search_goes_on(tmp_path):
    pytest.importorskip("optuna")
    kwargs = {"trials": 20, "lanes": 8, "search": sweep.optuna_search()}
    whole = run(RATE, **kwargs)
    with pytest.raises(KeyboardInterrupt):
        run(RATE, checkpoint=tmp_path, checkpoint_every=3, progress=stopping_after(7), **kwargs)
    same(run(RATE, checkpoint=tmp_path, **kwargs), whole)


def test_a_checkpoint_of_another_sweep_is_refused_by_name(tmp_path):
    kwargs = {"trials": 8, "checkpoint": tmp_path}
    run(RATE, **kwargs)
    other = sweep.Task(init, loss, data=(X, -Y), batch_size=16, **SCORED)

    def another(minimize):
        score = {"minimize": minimize} if minimize else {"maximize": "distance"}
        return sweep.Task(init, loss, data=(X, Y), batch_size=16, evaluate=evaluate, **score)

    longer = sweep.Task(init, lambda p, b: 2 * loss(p, b), data=(X, Y), batch_size=16, **SCORED)
    cases = {
        "steps 20, now 25": {"steps": 25},
        "its policy": {"policy": sweep.asha(first=5)},
        "lanes 8, now 16": {"lanes": 16},
        "its space": {"space": {"learning_rate": sweep.LogUniform(1e-3, 2e-1)}},
        "its data": {"task": other},
        "its program": {"task": longer},
        "its optimizer": {"optimizer": optfn.adamw},
        "seed 0, now 1": {"seed": 1},
        "score minimize distance, now minimize loss": {"task": another("loss")},
        "score minimize distance, now maximize distance": {"task": another(None)},
        "its search": {"search": sweep.sobol()},
        "mode vmap, now map": {"mode": "map"},
    }
    for what, change in cases.items():
        with pytest.raises(ValueError, match=f"is of another sweep: it differs in .*{what}"):
            run(**{"space": RATE} | kwargs | change)


def test_what_the_arguments_hold_is_compared_too(tmp_path):
    """Functions by their code, pruners by their settings, streams by their first batch."""
    optuna = pytest.importorskip("optuna")

    def choosing(power):
        return {"learning_rate": 0.1, "of": [lambda rate: rate**power, lambda rate: rate]}

    def streaming(sign):
        return sweep.Task(START, loss, stream=lambda step: (X[:16], sign * Y[:16]), **SCORED)

    def by_choice(learning_rate, of):
        return optfn.sgd(of(learning_rate))

    def pruning(count):
        return sweep.from_optuna(optuna.pruners.MedianPruner(n_startup_trials=count))

    def later(changes):
        def make(learning_rate):
            return optfn.sgd(learning_rate * (2 if changes and learning_rate < 0.01 else 1))

        return make

    cases = {
        "its space": lambda x: {"space": choosing(x), "optimizer": by_choice},
        "its data": lambda x: {"task": streaming(x)},
        "its policy": lambda x: {"policy": pruning(x)},
        "its optimizer": lambda x: {"optimizer": later(x == 2)},
    }
    for number, (what, kwargs) in enumerate(cases.items()):
        kept = {"task": STILL, "space": RATE, "trials": 8, "checkpoint": tmp_path / str(number)}
        run(**kept | kwargs(1))
        run(**kept | kwargs(1))
        with pytest.raises(ValueError, match=f"it differs in {what}"):
            run(**kept | kwargs(2))


def damage(step, name):
    """Turns one bit over in the middle of the largest file of a part of a checkpoint."""
    files = [path for path in (step / name).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["arrays", "host"])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_it_is_taken(tmp_path, name):
    kwargs = {"trials": 20, "lanes": 8, "checkpoint": tmp_path, "checkpoint_every": 2}
    whole = run(RATE, **kwargs)
    steps = sorted((p for p in tmp_path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    damage(steps[-1], name)
    with pytest.warns(UserWarning, match=f"checkpoint {steps[-1]}: its? "):
        result = run(RATE, **kwargs)
    same(result, whole)
    with warnings.catch_warnings(action="error"):  # it was written anew
        same(run(RATE, **kwargs), whole)


def test_if_all_are_damaged_nothing_is_begun_anew(tmp_path):
    run(RATE, trials=8, checkpoint=tmp_path)
    for step in tmp_path.iterdir():
        damage(step, "arrays")
    with (
        pytest.warns(UserWarning, match="is not what was written|cannot be read"),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"),
    ):
        run(RATE, trials=8, checkpoint=tmp_path)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def before(request):
    """The handler of Ctrl-C, which a parent such as `nohup` may have had ignored."""
    found = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, found)


def test_control_c_ends_with_the_results_so_far(tmp_path, before):
    def press(progress):
        os.kill(os.getpid(), signal.SIGINT)

    result = run(RATE, trials=20, lanes=8, progress=press, checkpoint=tmp_path)
    assert list(result.status) == ["stopped"] * 8 and (result.steps == 5).all()
    assert signal.getsignal(signal.SIGINT) is before
    whole = run(RATE, trials=20, lanes=8, checkpoint=tmp_path)
    same(whole, run(RATE, trials=20, lanes=8))


def begin(tx, key):
    return START, tx.init(START), jax.random.key(3, impl="rbg")


def step(tx, carry, batch, key):
    params, state, own = carry
    value, grads = jax.value_and_grad(loss)(params, batch)
    grads["b"] += jax.random.uniform(jax.random.fold_in(own, state.step))
    params, state = optfn.step(tx, params, grads, state)
    return (params, state, own), {"loss": value}


KEYED = sweep.TrainingLoop(
    begin, step, params=lambda carry: carry[0], data=(X, Y), batch_size=16, **SCORED
)


@pytest.mark.parametrize("mode", ["vmap", "map", "loop"])
def test_keys_of_any_kind_may_be_carried(tmp_path, mode):
    policy = sweep.successive_halving(first=5, bracket=18)
    kwargs = {"task": KEYED, "trials": 18, "lanes": 16, "mode": mode, "policy": policy}
    whole = run(RATE, **kwargs)
    assert (whole.status == "ok").any()
    with pytest.raises(KeyboardInterrupt):
        run(RATE, checkpoint=tmp_path, checkpoint_every=1, progress=stopping_after(2), **kwargs)
    same(run(RATE, checkpoint=tmp_path, **kwargs), whole)


def test_keys_are_kept(tmp_path):
    """An optimizer with a key in its state."""
    make = optfn.noisy_sgd
    kwargs = {"task": STILL, "optimizer": make, "trials": 10, "lanes": 8}
    whole = run(RATE, **kwargs)
    with pytest.raises(KeyboardInterrupt):
        run(RATE, checkpoint=tmp_path, checkpoint_every=2, progress=stopping_after(5), **kwargs)
    same(run(RATE, checkpoint=tmp_path, **kwargs), whole)


def test_a_function_in_a_space_may_hold_modules_itself_and_sets():
    """As one that is made inside another function does."""
    numpy, node = np, SimpleNamespace()
    node.own = node

    def make(kind):
        return (node, numpy, make) if kind in {"one", "two", "three", "four"} else None

    assert len(json.dumps(plain := _plain(make))) < 2000
    assert sorted(map(repr, ("one", "two", "three", "four"))) in plain[1][2]


def test_a_function_in_a_space_is_known_by_its_defaults_too():
    def of(first, second):
        def make(rate=first, *, decay=second):
            return rate, decay

        return make

    first, *others = [json.dumps(_plain(of(*pair))) for pair in [(1, 2), (1, 2), (3, 2), (1, 3)]]
    assert [first == other for other in others] == [True, False, False]
