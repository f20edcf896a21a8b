"""Tasks of a function: hyperparameters that change shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep.problem import RATE, X, Y, run, same

import optfn
from optfn import sweep

MADE = []


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.mean(jnp.tanh(x @ params["w"]), axis=1) - y) ** 2)


def task_of(width, batch_size):
    """A layer of a width, in whose loss another number is searched too."""
    MADE.append((width, batch_size))
    if width > 4:
        raise MemoryError("too wide")

    def init(key):
        return {"w": jax.random.normal(key, (3, width))}

    def punished(params, batch, *, decay):
        return loss(params, batch) + decay * jnp.sum(params["w"] ** 2)

    return sweep.Task(
        init,
        punished,
        data=(X, Y),
        batch_size=batch_size,
        evaluate=lambda params: {"fit": loss(params, (X, Y)), "width": params["w"].shape[1] * 1.0},
        minimize="fit",
    )


SPACE = RATE | {"width": [2, 4], "batch_size": 16, "decay": [0.0, 0.1]}
KWARGS = {"optimizer": optfn.sgd, "trials": 9, "lanes": 8, "mode": "map", "steps": 10}


@pytest.mark.slow
def test_each_combination_is_trained_as_alone(tmp_path):
    MADE.clear()
    kwargs = {**KWARGS, "confirm": sweep.Confirm(top=4, seeds=1), "keep_best": 4}
    result = run(SPACE, task_of, **kwargs)
    assert sorted(MADE) == [(2, 16), (4, 16)] and (result.status == "ok").all()
    assert [p["width"] for p in result.points] == list(result.curves["width"][:, -1])
    assert {point["width"] for point in result.points} == {2, 4}
    for best in result.top(4):
        assert best.params["w"].shape == (3, best.values["width"])
        np.testing.assert_allclose(loss(best.params, (X, Y)), best.score, rtol=1e-5)
    i = result.best().trial
    assert result.rerun(i, seeds=[0]).score == result.scores[i, 0]
    values = {name: [value] for name, value in result.points[i].items() if name != "batch_size"}
    width = values.pop("width")[0]
    alone = run(values, task_of(width, 16), search=sweep.grid(), **KWARGS | {"trials": 1})
    assert alone.scores[0, 0] == result.scores[i, 0]
    stopped = run(SPACE, task_of, max_seconds=0.0, checkpoint=tmp_path, **kwargs)
    assert (stopped.status == "stopped").any()
    same(run(SPACE, task_of, checkpoint=tmp_path, **kwargs), result)
    with pytest.raises(ValueError, match="differs in its task"):
        run(SPACE, lambda width, batch_size: task_of(width, 8), checkpoint=tmp_path, **kwargs)


@pytest.mark.slow
def test_a_task_that_cannot_be_made_fails_alone():
    space = SPACE | {"width": [5, 2], "decay": 0.0}
    result = run(space, task_of, **KWARGS)
    wide = np.array([p["width"] == 5 for p in result.points])
    assert 0 < wide.sum() < 9 and ((result.status == "failed") == wide).all()
    assert set(result.errors.values()) == {"MemoryError: too wide"}
    with pytest.raises(MemoryError, match="too wide"):
        run(space | {"width": 5}, task_of, **KWARGS)
    with pytest.raises(MemoryError) as caught:
        run(space, task_of, catch=(), **KWARGS)
    assert "in the task of trial" in caught.value.__notes__[0]


def test_tasks_may_record_different_scores():
    def of_width(width):
        start = {"w": np.full((3, width), 0.1, np.float32)}
        name = f"of {width}"
        return sweep.Task(start, loss, data=(X, Y), evaluate=lambda params: {name: 1.0 * width})

    result = run({"learning_rate": 0.1, "width": [2, 4]}, of_width, **KWARGS | {"trials": 4})
    widths = np.array([point["width"] for point in result.points])
    for width in (2, 4):
        curve = result.curves[f"of {width}"]
        assert (curve[widths == width] == width).all() and np.isnan(curve[widths != width]).all()
    assert set(widths) == {2, 4}


BAD = {
    "found function task_of, which needs 'batch_size'": {"space": RATE | {"width": 2}},
    "the space's 'height' is taken by nobody: sgd takes": {"space": SPACE | {"height": 2}},
    "must return a Task or a TrainingLoop, found int": {"task": lambda width: 3},
    "pbt copies the state of one member to another": {"policy": sweep.pbt(every=5), "trials": 8},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_tasks_are_refused(message):
    kwargs = {"space": SPACE, "task": task_of} | KWARGS | BAD[message]
    if "int" in message:
        kwargs["space"] = RATE | {"width": 2}
    with pytest.raises((TypeError, ValueError)) as caught:
        run(**kwargs)
    assert message in str(caught.value)
