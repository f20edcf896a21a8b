"""Batches without replacement: every example once an epoch, whatever happens around a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep.problem import RATE, START, X, Y, init, loss, run, same

import optfn
from optfn import sweep
from optfn.sweep.epochs import ROUNDS, rows_of_steps

KEY = jax.random.key(3)
rows_of = jax.jit(rows_of_steps, static_argnums=(2, 3))


def by_hand(key, steps, examples, batch_size):
    """Swap-or-not in whole numbers of any size, an example at a time."""
    rows = []
    for position in range(int(steps[0]) * batch_size, (int(steps[-1]) + 1) * batch_size):
        epoch, place = divmod(position, examples)
        bits = jax.random.bits(jax.random.fold_in(key, epoch), (ROUNDS, 2), jnp.uint32)
        for point, salt in np.asarray(bits).tolist():
            image = (point % examples - place) % examples
            x = (max(place, image) ^ salt) * 0x9E3779B1 % 2**32
            x = (x ^ x >> 15) * 0x85EBCA77 % 2**32
            place = image if x >= 2**31 else place
        rows.append(place)
    return np.reshape(rows, (-1, batch_size))


@pytest.mark.parametrize("examples, batch_size", [(8, 4), (7, 3), (5, 5), (1, 1), (10, 7)])
def test_every_example_comes_once_an_epoch(examples, batch_size):
    steps = jnp.arange(3 * examples)
    rows = np.asarray(rows_of(KEY, steps, examples, batch_size))
    assert rows.shape == (3 * examples, batch_size) and rows.dtype == np.int32
    epochs = rows.reshape(-1, examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [range(examples)] * len(epochs))
    if examples > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 0.9 * len(epochs)


def test_it_is_swap_or_not():
    steps = jnp.arange(5, 12)
    rows = rows_of(KEY, steps, 23, 6)
    np.testing.assert_array_equal(rows, by_hand(KEY, steps, 23, 6))


def test_a_step_has_its_batch_wherever_one_begins():
    """As a run that is resumed, or that a loop on the host trains step by step."""
    whole = rows_of(KEY, jnp.arange(40), 23, 6)
    for begin, end in ((0, 1), (3, 4), (4, 25), (39, 40)):
        part = rows_of(KEY, jnp.arange(begin, end), 23, 6)
        np.testing.assert_array_equal(part, whole[begin:end])


def test_all_orders_are_alike():
    """Each example is as often in each place, and each pair as often next to each other."""
    examples, epochs = 6, 6000
    rows = np.asarray(rows_of(KEY, jnp.arange(epochs), examples, examples))
    places = np.stack([np.bincount(column, minlength=examples) for column in rows.T])
    assert abs(places - epochs / examples).max() < 5 * np.sqrt(epochs / examples)
    pairs = np.zeros((examples, examples))
    np.add.at(pairs, (rows[:, 0], rows[:, 1]), 1)
    off = pairs[~np.eye(examples, dtype=bool)]
    assert abs(off - epochs / 30).max() < 5 * np.sqrt(epochs / 30)
    assert np.trace(pairs) == 0


def test_large_data_needs_no_table():
    rows = np.asarray(rows_of(KEY, jnp.arange(100), 10**9, 1000))
    assert len(np.unique(rows)) == 10**5 and 0 <= rows.min() < 10**6 and rows.max() > 10**9 - 10**6
    text = jax.jit(rows_of_steps, static_argnums=(2, 3)).lower(KEY, jnp.arange(100), 10**9, 1000)
    assert "1000000000x" not in text.as_text()


SEEN = sweep.TrainingLoop(
    lambda tx, key: {"seen": jnp.zeros(7), "w": jnp.zeros(())},
    lambda tx, carry, batch, key: ({**carry, "seen": carry["seen"].at[batch].add(1.0)}, {}),
    data=np.arange(7),
    batch_size=3,
    evaluate=lambda carry: {"least": carry["seen"].min(), "most": carry["seen"].max()},
    maximize="least",
)


@pytest.mark.parametrize(
    "mode", ["map", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("vmap", "loop"))]
)
def test_lanes_see_every_example_as_often(mode):
    """Also those that wait, and those that take the lane of another."""
    policy = sweep.successive_halving(first=7, bracket=18)
    kwargs = {"trials": 20, "lanes": 8, "steps": 35, "segment": 7, "mode": mode}
    result = run(RATE, SEEN, optfn.sgd, policy=policy, **kwargs)
    ended = result.curves["least"][result.status == "ok"]
    assert len(ended)
    np.testing.assert_array_equal(ended, [[3, 6, 9, 12, 15]] * len(ended))
    np.testing.assert_array_equal(result.curves["most"], result.curves["least"])


@pytest.mark.slow
def test_seeds_have_orders_of_their_own_and_trials_of_a_seed_the_same():
    task = sweep.Task(START, loss, data=(X, Y), batch_size=16)
    result = run({"learning_rate": [0.01, 0.01]}, task, search=sweep.grid(), seeds=2, lanes=16)
    np.testing.assert_array_equal(result.scores[0], result.scores[1])
    assert result.scores[0, 0] != result.scores[0, 1]


@pytest.mark.slow
def test_with_replacement_on_request():
    """By a draw of its own in each step, as the seed and the step say."""
    task = sweep.Task(init, loss, data=(X, Y), batch_size=16, replacement=True)

    def drawing(key, data):
        rows = jax.random.randint(key, (16,), 0, len(X))
        return jax.tree.map(lambda x: x[rows], data)

    same(
        run(RATE, task, trials=8, lanes=16),
        run(RATE, sweep.Task(init, loss, data=(X, Y), batch=drawing), trials=8, lanes=16),
    )
    with pytest.raises(ValueError, match="needs a batch_size"):
        sweep.Task(init, loss, data=(X, Y), replacement=True)
