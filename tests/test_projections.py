"""Sets and params that stay in them: the nearest points, where steps end, and what is refused."""

from functools import partial

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax import projections as theirs

import optfn
from optfn import projections, schedules

RNG = np.random.default_rng(0)
INSIDE = {
    "box": (projections.box(-0.5, 0.7), lambda x: ((x >= -0.5) & (x <= 0.7)).all()),
    "non_negative": (projections.non_negative(), lambda x: (x >= 0).all()),
    "simplex": (projections.simplex(2.0), lambda x: (x >= 0).all() and is_near(x.sum(), 2)),
    "simplex of rows": (
        projections.simplex(axis=-1),
        lambda x: (x >= 0).all() and is_near(x.sum(-1), 1),
    ),
    "l1_ball": (projections.l1_ball(1.5), lambda x: abs(x).sum() <= 1.5 + 1e-5),
    "l1_ball of columns": (
        projections.l1_ball(0.5, axis=0),
        lambda x: (abs(x).sum(0) <= 0.5 + 1e-5).all(),
    ),
    "l2_ball": (projections.l2_ball(1.5), lambda x: np.linalg.norm(x) <= 1.5 + 1e-5),
    "l2_ball of rows": (
        projections.l2_ball(0.5, axis=1),
        lambda x: (np.linalg.norm(x, axis=1) <= 0.5 + 1e-5).all(),
    ),
    "l2_sphere": (projections.l2_sphere(3.0), lambda x: is_near(np.linalg.norm(x), 3)),
    "orthogonal": (projections.orthogonal(), lambda x: is_near(x.T @ x, np.eye(x.shape[1]))),
}
CURVED = ("l2_sphere", "orthogonal")


def is_near(x, y):
    return np.allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("name", INSIDE)
def test_the_nearest_point_is_in_the_set_and_no_other_is_nearer(name):
    """Of a convex set the angle between the way to it and the way inside is not acute."""
    project, is_inside = INSIDE[name]
    points = np.float32(RNG.normal(size=(40, 4, 3)) * np.geomspace(0.05, 50, 40)[:, None, None])
    found = np.asarray(jax.jit(jax.vmap(project))(points), float)
    again = np.asarray(jax.vmap(project)(np.float32(found)), float)
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)
    for x, p in zip(points.astype(float), found, strict=True):
        assert is_inside(p)
        away = (found - p).reshape(len(found), -1)
        if name in CURVED:
            others = np.linalg.norm((found - x).reshape(len(found), -1), axis=1)
            assert np.linalg.norm(x - p) <= others.min() * (1 + 1e-5)
        else:
            assert (away @ (x - p).ravel() <= 1e-4 * np.linalg.norm(x)).all()


@pytest.mark.parametrize(
    ("ours", "optax_s"),
    [
        (projections.box(-0.5, 0.7), partial(theirs.projection_box, lower=-0.5, upper=0.7)),
        (projections.non_negative(), theirs.projection_non_negative),
        (projections.simplex(2.0), partial(theirs.projection_simplex, scale=2.0)),
        (projections.l1_ball(1.5), partial(theirs.projection_l1_ball, scale=1.5)),
        (projections.l2_ball(1.5), partial(theirs.projection_l2_ball, scale=1.5)),
        (projections.l2_sphere(1.5), partial(theirs.projection_l2_sphere, scale=1.5)),
    ],
    ids=lambda x: repr(x) if isinstance(x, optfn.projections.Projection) else "",
)
@pytest.mark.slow
def test_the_nearest_point_is_optax_s(ours, optax_s):
    for size in (0.1, 1, 10):
        x = jnp.float32(size * RNG.normal(size=7))
        np.testing.assert_allclose(ours(x), optax_s(x), rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_corner_cases():
    for x in (jnp.zeros(3), jnp.zeros(0), jnp.float32(2.0), jnp.full(3, 1e30)):
        for name, (project, _) in INSIDE.items():
            if not name.endswith(("rows", "columns", "orthogonal")):
                found = project(x)
                assert found.shape == x.shape and np.isfinite(found).all(), name
    assert np.isnan(projections.l2_ball()(jnp.asarray([1.0, jnp.nan]))).all()
    np.testing.assert_array_equal(projections.box(0, 1)(jnp.asarray([jnp.nan, 3])), [jnp.nan, 1])
    np.testing.assert_array_equal(projections.l1_ball(0.0)(jnp.asarray([1.0, -2.0])), 0)
    z = projections.l2_ball()(jnp.asarray([3 + 4j]))
    np.testing.assert_allclose(z, [0.6 + 0.8j], rtol=1e-6)
    assert projections.simplex()(jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16


# Where steps end.

NUMBERS = st.floats(-(2.0**12), 2.0**12, width=16)


@jax.jit
def in_box(p, g, lower, upper):
    tx = optfn.projected(optfn.sgd(-1.0), projections.box(lower, upper))
    state = optfn.State(jnp.int32(0), {})
    updates, _ = tx.update(g, state, p)
    return optfn.step(tx, p, g, state)[0], p + updates.astype(p.dtype), updates


@hypothesis.given(
    hnp.arrays(np.float32, 4, elements=NUMBERS),
    hnp.arrays(np.float32, 4, elements=NUMBERS),
    st.floats(-100, 100, width=32),
    st.floats(2.0**-4, 100, width=32),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_no_entry_is_ever_outside_of_a_box(p, g, lower, width, dtype):
    """From wherever it starts, also where the bounds are no numbers of the dtype of the params."""
    lower, upper = np.float32(lower), np.float32(lower) + np.float32(max(width, abs(lower) / 16))
    p = p.astype(np.dtype(dtype))
    stepped, _, updates = map(np.asarray, in_box(p, g, lower, upper))
    assert (stepped.astype(float) >= lower).all() and (stepped.astype(float) <= upper).all()
    moved = p.astype(np.float32) + g
    free = (moved > lower) & (moved < upper) & (dtype == jnp.float32)
    np.testing.assert_array_equal(updates[free], g[free])


def test_projected_descent_finds_the_minimum_on_the_simplex():
    """By its conditions: the slopes are equal where the entries are positive, elsewhere higher."""
    root = RNG.normal(size=(6, 6))
    matrix, b = root.T @ root, 3 * RNG.normal(size=6)
    tx = optfn.projected(optfn.sgd(1 / np.linalg.norm(matrix, 2)), projections.simplex())

    @jax.jit
    def solve(x):
        def step(carry, _):
            x, state = carry
            return optfn.step(tx, x, matrix @ x - b, state), None

        return jax.lax.scan(step, (x, tx.init(x)), None, 3000)[0][0]

    x = np.asarray(solve(jnp.ones(6)), float)
    slope = matrix @ x - b
    inside = x > 1e-6
    assert 1 < inside.sum() < 6
    np.testing.assert_allclose(slope[inside], slope[inside].mean(), atol=1e-3)
    assert (slope[~inside] > slope[inside].mean()).all()
    np.testing.assert_allclose(x.sum(), 1, atol=1e-6)


PARAMS = {
    "a": {"w": jnp.float32(RNG.normal(size=(3, 4))), "b": jnp.asarray([1.0, -2.0])},
    "c": jnp.asarray([0.5, 3.0, -1.0]),
    "n": None,
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def after(projection, params=PARAMS, steps=1):
    tx = optfn.projected(optfn.adam(0.5), projection)
    state = tx.init(params)
    for _ in range(steps):
        grads = jax.tree.map(jnp.ones_like, params)
        params, state = optfn.step(tx, params, grads, state)
    return params


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_on_a_mesh_steps_end_at_the_same_points_and_nothing_moves(kind):
    sets = {name: project for name, (project, _) in INSIDE.items()}
    tx = optfn.projected(optfn.sgd(0.5, momentum=0.9), sets)
    params, grads = ({k: np.float32(RNG.normal(size=(8, 4))) for k in sets} for _ in range(2))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    whole = NamedSharding(mesh, PartitionSpec("x", "y"))

    @jax.jit
    def two_steps(params, grads):
        state = tx.init(params)
        for _ in range(2):
            params, state = optfn.step(tx, params, grads, state)
        return params, state

    alone, _ = two_steps(params, grads)
    split, state = two_steps(*jax.device_put((params, grads), whole))
    for name, x in split.items():
        np.testing.assert_allclose(x, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert INSIDE[name][1](np.asarray(x)), name
    for x in [*split.values(), *(x for x in jax.tree.leaves(state) if x.ndim)]:
        assert x.sharding.is_equivalent_to(whole, x.ndim), x.sharding


def test_by_leaf_by_path_and_of_the_whole_tree():
    free = after(projections.box())
    by_tree = after({"a": projections.box(0, 1), "c": None, "n": None})
    by_path = after(optfn.by_path({"a/*": projections.box(0, 1)}))
    jax.tree.map(np.testing.assert_array_equal, by_tree, by_path)
    np.testing.assert_array_equal(by_tree["c"], free["c"])
    np.testing.assert_allclose(by_tree["a"]["b"], np.clip(free["a"]["b"], 0, 1), atol=1e-6)
    rest = after(optfn.by_path({"a/*": projections.box(0, 1)}, default=projections.simplex()))
    np.testing.assert_allclose(rest["c"].sum(), 1, atol=1e-6)
    whole = after(partial(theirs.projection_simplex, scale=1.0))
    wanted = theirs.projection_simplex(free)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), whole, wanted)
    np.testing.assert_allclose(sum(map(jnp.sum, jax.tree.leaves(whole))), 1, atol=1e-5)
    part = after({"a": theirs.projection_simplex, "c": projections.box(0, 1), "n": None})
    np.testing.assert_allclose(sum(map(jnp.sum, jax.tree.leaves(part["a"]))), 1, atol=1e-5)
    assert (part["c"] >= 0).all() and (part["c"] <= 1).all()


def test_a_step_that_ends_inside_is_as_it_was():
    tx = optfn.adam(0.5)
    wanted, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for project in (projections.l2_ball(100.0), projections.box(-50, 50), lambda tree: tree):
        wrapped = optfn.projected(tx, project)
        found, _ = wrapped.update(GRADS, wrapped.init(PARAMS), PARAMS)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_numbers_are_leaves_and_may_be_schedules():
    tx = optfn.projected(optfn.sgd(0.1), projections.l2_ball(schedules.linear(2.0, 1.0, 10)))
    state = tx.init(jnp.ones(9))
    params = jnp.ones(9)
    for wanted in (2.0, 1.9, 1.8):
        assert np.isclose(optfn.hyperparameters(tx, state)["scale"], wanted)
        params, state = optfn.step(tx, params, -jnp.ones(9), state)
        np.testing.assert_allclose(jnp.linalg.norm(params), wanted, rtol=1e-6)
    several = optfn.stack(
        [optfn.projected(optfn.sgd(0.1), {"x": projections.l2_ball(r)}) for r in (1.0, 2.0)]
    )

    @partial(jax.vmap, in_axes=(optfn.in_axes(several),))
    def norm(tx):
        x = {"x": jnp.ones(9)}
        return jnp.linalg.norm(optfn.step(tx, x, x, tx.init(x))[0]["x"])

    np.testing.assert_allclose(norm(several), [1, 2], rtol=1e-6)
    again = optfn.replace(optfn.projected(optfn.sgd(0.1), projections.box(0, 1)), upper=2.0)
    assert again.projection.upper == 2.0


@pytest.mark.slow
def test_in_other_wrappers_and_around_optax_s():
    one = optfn.projected(optax.adam(0.5), projections.box(0, 1))
    for tx in (
        optfn.accumulate(one, 1),
        optfn.ema_of_params(one, 0.9),
        optfn.chain(optfn.clip_by_global_norm(1.0), one),
        optfn.partition({"x": one, "y": one}, {"a": "x", "c": "y", "n": "x"}),
        optfn.projected(
            optfn.freeze(optfn.adam(0.5), {"a": False, "c": False, "n": False}), one.projection
        ),
    ):
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            params, state = optfn.step(tx, params, GRADS, state)
        for leaf in jax.tree.leaves(params):
            assert ((leaf >= 0) & (leaf <= 1)).all()
    counts = {"x": jnp.ones(2), "count": jnp.asarray([1, 2])}
    frozen = optfn.projected(
        optfn.freeze(optfn.sgd(3.0), {"x": False, "count": True}), projections.box(0, 1)
    )
    found, _ = optfn.step(frozen, counts, counts, frozen.init(counts))
    np.testing.assert_array_equal(found["x"], 0)
    np.testing.assert_array_equal(found["count"], counts["count"])


def test_it_is_data():
    for projection in (
        projections.simplex(2.0, axis=-1),
        optfn.by_path({"a/*": projections.box(0, 1)}, default=projections.l1_ball(3.0)),
        {"a": projections.orthogonal(), "c": None},
    ):
        tx = optfn.projected(optfn.sgd(0.1), projection)
        names = {name: getattr(optfn, name) for name in ("by_path", "projected", "chain")}
        scope = names | {n: getattr(optfn, n) for n in dir(optfn) if n[0] != "_"}
        again = eval(repr(tx), scope)
        assert jax.tree.structure(again) == jax.tree.structure(tx)
        if not isinstance(projection, dict):
            again = optfn.from_config(optfn.to_config(tx))
            assert jax.tree.structure(again) == jax.tree.structure(tx)
            assert jax.tree.leaves(again) == jax.tree.leaves(tx)


def refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_what_is_refused():
    sgd, box = optfn.sgd(0.1), projections.box(0, 1)
    for error, match, call in (
        (ValueError, r"box\(lower=2.0, upper=1.0\): a lower", lambda: projections.box(2, 1)),
        (ValueError, r"simplex\(scale=...\) must not be neg", lambda: projections.simplex(-1)),
        (TypeError, r"axis=...\) must be a whole number", lambda: projections.simplex(axis=0.5)),
        (
            TypeError,
            "must be a set of .*float",
            lambda: optfn.projected(sgd, 1.0),
        ),
        (TypeError, "found the class box; call it", lambda: optfn.projected(sgd, projections.box)),
        (TypeError, "for some leaves, found none", lambda: optfn.projected(sgd, {"a": None})),
        (
            ValueError,
            "must be a whole optimizer",
            lambda: optfn.projected(optfn.scale_by_adam(), box),
        ),
        (
            ValueError,
            "would change the updates of",
            lambda: optfn.chain(optfn.projected(sgd, box), optfn.scale(0.5)),
        ),
        (
            ValueError,
            r"box\(lower=...\) has shape \(2,\), the",
            lambda: after(projections.box(np.zeros(2))),
        ),
        (ValueError, "set of matrices, found shape", lambda: after(projections.orthogonal())),
        (
            ValueError,
            r"simplex\(axis=1\): the array has",
            lambda: after(projections.simplex(axis=1)),
        ),
        (ValueError, "result of the projection and the", lambda: after(lambda tree: tree["a"])),
        (ValueError, "no leaf matches", lambda: after(optfn.by_path({"z": box}))),
        (ValueError, "does not fit the params", lambda: after({"a": box})),
        (
            TypeError,
            "simplex is a set of real arrays",
            lambda: projections.simplex()(jnp.ones(2) * 1j),
        ),
        (TypeError, "only floating point arrays", lambda: box(jnp.arange(3))),
        (
            ValueError,
            "projected needs the params",
            lambda: optfn.projected(sgd, box).update(GRADS, sgd.init(PARAMS)),
        ),
    ):
        refused(error, match, call)
