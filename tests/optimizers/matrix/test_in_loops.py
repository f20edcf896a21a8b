"""Many small matrices of one shape share a loop, which gives what each by itself would."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import MatrixAxes
from optfn.core.tracing import LOOP, SMALL

VIEWS = MatrixAxes(rows=-1, columns=-2)
RULES = {
    "newton_schulz": optfn.newton_schulz(views=VIEWS),
    "scale_by_lmo": optfn.scale_by_lmo(views=VIEWS),
}


def normal(shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
    return dict(zip(map(str, range(len(shapes))), leaves, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_each_is_what_it_is_alone(name):
    """A loop and what is left over, a rare shape amid them, and stacks."""
    tx = RULES[name]
    few = normal([(3, 4)] * 3 + [(2, 2)] + [(3, 4)] * LOOP + [(2, 2, 3)] * LOOP)
    found, _ = jax.jit(tx.update)(few, tx.init(few))
    alone = jax.jit(tx.update)
    for name, g in few.items():
        wanted, _ = alone({"g": g}, tx.init({"g": g}))
        np.testing.assert_allclose(found[name], wanted["g"], atol=1e-6)


def test_random_rules_draw_in_a_loop_what_they_draw_alone():
    class shaken(optfn.Matrixwise):
        many_products = random = True
        seed: Any = 0

        def update_matrix(self, g, slots, param, t, *, key: Any = None):
            return g + jax.random.uniform(key, g.shape), slots

    many = normal([(2, 3)] * LOOP)
    update = jax.jit(shaken().update)
    (looped, _), (alone, _) = (update(gs, shaken().init(gs)) for gs in (many, {"1": many["1"]}))
    np.testing.assert_array_equal(looped["1"], alone["1"])


def test_lanes_and_derivatives_pass_through():
    tx = optfn.muon(0.1, views=VIEWS)
    grads = normal([(2, 2, 3)] * LOOP)  # the first axis is of lanes

    def total(rate, grads):
        own = optfn.replace(tx, **{"matrix.scale_by_learning_rate.learning_rate": rate})
        updates, _ = own.update(grads, own.init(grads), grads)
        return sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

    rates = jnp.asarray([0.1, 0.2])
    both = jax.jit(jax.vmap(jax.grad(total, argnums=(0, 1))))(rates, grads)
    for i, rate in enumerate(rates):
        # Outside of a trace there are no loops.
        lane = jax.tree.map(lambda g, i=i: g[i], grads)
        near = [total(rate + change, lane) for change in (0.01, -0.01)]
        np.testing.assert_allclose(both[0][i], (near[0] - near[1]) / 0.02, rtol=1e-3)
    assert all(jnp.isfinite(g).all() for g in both[1].values())


def loops_and_stacks(shape, number):
    """The loops of the compiled program, and whether it makes stacks."""
    tx = RULES["newton_schulz"]
    lowered = jax.jit(tx.update).lower(normal([shape] * number), tx.init({}))
    compiled = lowered.compile().as_text() or ""
    return compiled.count(" while("), "concatenate" in lowered.as_text()


def test_the_program_has_a_loop_for_several_leaves():
    assert loops_and_stacks((4, 4), 2 * LOOP) == (4, True)  # two, with that over the polynomials
    assert loops_and_stacks((4, 4), LOOP - 1) == (LOOP - 1, False)


def test_large_matrices_stay_by_themselves():
    tx = RULES["newton_schulz"]
    large = jax.ShapeDtypeStruct((SMALL // 64, 65), jnp.float32)
    lowered = jax.jit(tx.update).lower({f"w{i}": large for i in range(LOOP)}, tx.init({}))
    assert "concatenate" not in lowered.as_text()
