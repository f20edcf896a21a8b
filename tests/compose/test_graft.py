"""Grafting, and views in blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

import optfn

G = {"w": jnp.asarray([[3.0, 1.0, -2.0], [0.5, 4.0, 1.0]]), "b": jnp.asarray([3.0, -4.0])}


def test_each_matrix_has_the_direction_of_one_and_the_norm_of_the_other():
    tx = optfn.graft(optfn.scale_by_sign(), optfn.clip(100.0))
    updates, state = tx.update(G, tx.init(G))
    assert not state.slots
    for name, g in G.items():
        np.testing.assert_allclose(jnp.sign(updates[name]), jnp.sign(g))
        np.testing.assert_allclose(np.linalg.norm(updates[name]), np.linalg.norm(g), rtol=1e-6)


def test_before_its_start_it_is_the_other_one():
    tx = optfn.graft(optfn.scale_by_sign(), optfn.clip(100.0), start=2)
    first, state = tx.update(G, tx.init(G))
    second, _ = tx.update(G, state)
    np.testing.assert_allclose(first["w"], G["w"])
    assert len(np.unique(abs(second["w"]))) == 1


def test_every_block_has_a_norm_of_its_own():
    views = optfn.in_blocks(optfn.matrices(), 2)
    tx = optfn.graft(optfn.scale_by_sign(), optfn.clip(100.0), views=views)
    u = tx.update(G, tx.init(G))[0]["w"]
    for columns in (slice(0, 2), slice(2, 3)):
        wanted = np.linalg.norm(G["w"][:, columns])
        np.testing.assert_allclose(np.linalg.norm(u[:, columns]), wanted, rtol=1e-6)


def test_norms_out_of_range_are_taken_over_and_zero_stays_zero():
    tx = optfn.graft(optfn.scale(1e-30), optfn.scale(1e30))
    u = tx.update(G, tx.init(G))[0]
    np.testing.assert_allclose(u["w"], 1e30 * G["w"], rtol=1e-5)
    nothing = {"w": jnp.zeros((2, 2))}
    assert not tx.update(nothing, tx.init(nothing))[0]["w"].any()


def test_a_step_beside_a_direction_is_refused():
    with pytest.raises(
        ValueError, match=r"graft\(\.\.\.\): the updates of direction are DIRECTION"
    ):
        optfn.graft(optfn.scale_by_adam(), optfn.sgd(0.1))


def test_labels_of_views_are_data():
    def labels(path="a/*"):
        return optfn.matrix_labels(optfn.matrices({path: optfn.NO_MATRIX}))

    assert labels() == labels() and hash(labels()) == hash(labels()) != hash(labels("b/*"))
    assert (labels()("kernel", jnp.ones((3, 9))), labels()("a/kernel", None)) == ("matrix", "rest")
    assert repr(labels()).startswith("matrix_labels(matrices({")
    tx = optfn.partition({"matrix": optfn.sgd(1.0), "rest": optfn.sgd(0.1)}, labels())
    with pytest.raises(ValueError, match="no leaf matches 'a/"):
        tx.init({"b": jnp.ones((3, 9))})
    assert optfn.matrix_labels(None) == optfn.matrix_labels() != labels()
    assert optfn.matrix_labels() == optfn.matrix_labels(optfn.matrices())
    tree = optfn.matrix_labels({"w": optfn.MatrixAxes(0, 1), "b": optfn.NO_MATRIX})
    assert tree == {"w": "matrix", "b": "rest"}
    of_params = optfn.matrix_labels(lambda params: {"w": optfn.MatrixAxes(0, 1)})
    assert of_params({"w": None}) == {"w": "matrix"}


def test_views_in_blocks_are_data():
    views = optfn.in_blocks(optfn.matrices({"a/*": optfn.NO_MATRIX}), 4)
    same = optfn.in_blocks(optfn.matrices({"a/*": optfn.NO_MATRIX}), 4)
    assert views == same and hash(views) == hash(same) != hash(optfn.in_blocks(optfn.matrices(), 4))
    leaf = jnp.ones((3, 9))
    assert views("kernel", leaf).block == 4
    assert views("kernel", leaf[:, :4]).block is None
    assert views("a/kernel", leaf) == optfn.NO_MATRIX
    with pytest.raises(ValueError, match="no leaf matches 'a/"):
        optfn.newton_schulz(views=views).init({"b": leaf})
    tree = optfn.in_blocks({"w": optfn.MatrixAxes(0, 1)}, 4)
    assert tree == {"w": optfn.MatrixAxes(0, 1, block=4)}
    with pytest.raises(ValueError, match=r"in_blocks\(block=...\) must be a whole number above 0"):
        optfn.in_blocks(optfn.matrices(), 0)
    with pytest.raises(TypeError, match=r"in_blocks\(views=...\).* MatrixAxes"):
        optfn.in_blocks({"w": "rows"}, 4)
    of_params = optfn.in_blocks(lambda params: {"w": optfn.MatrixAxes(0, 1)}, 4)
    assert of_params({"w": leaf}) == tree
