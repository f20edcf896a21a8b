"""The coordinate check finds the exponents that are there, and those that muP takes away."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import optfn
from optfn.testing import CoordinateCheck, coordinate_check

WIDTHS = (16, 128)
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(32, 6)))
Y = np.float32(np.tanh(X @ RNG.normal(size=(6, 4))))


def known(width):
    """An activation that grows with the root of the width, and its change with its square."""
    params = {"w": jnp.ones(width)}

    def loss(params, batch):
        h = params["w"] * width**0.5
        drift = (params["w"] - 1) * width**2 + 1
        return jnp.sum(params["w"]) + 0 * batch, {"h": h, "part": {"drift": drift}}

    return optfn.sgd(0.1), params, loss


def test_it_finds_the_exponents():
    check = coordinate_check(known, (64, 16, 32), jnp.zeros(()), steps=3)
    assert check.widths == (16, 32, 64)
    assert list(check.sizes) == ["h", "part/drift"]
    np.testing.assert_allclose(check.exponents["h"], [0.5] * 4, atol=1e-5)
    np.testing.assert_allclose(check.exponents["part/drift"][0], 0, atol=1e-5)
    np.testing.assert_allclose(check.change_exponents["part/drift"], [2] * 3, atol=1e-5)
    steps = np.arange(4)[:, None]
    sizes = (1 - 0.1 * steps) * np.sqrt([16, 32, 64])
    np.testing.assert_allclose(check.sizes["h"], sizes, rtol=1e-5)
    np.testing.assert_allclose(check.changes["h"], np.sqrt([16, 32, 64]) - sizes, atol=1e-5)
    np.testing.assert_allclose(check.losses, (1 - 0.1 * steps) * [16, 32, 64], rtol=1e-5)
    assert check.worst == pytest.approx(2, abs=0.02)
    assert repr(check).splitlines()[1].split() == ["h", "+0.50", "+0.50", "+0.50"]


def test_what_diverges_is_the_worst():
    for bad in (np.nan, np.inf):
        sizes = {"h": np.asarray([[1.0, 1.0], [1.0, bad]]), "frozen": np.ones((2, 2))}
        changes = {"h": np.asarray([[0.0, 0.0], [0.5, bad]]), "frozen": np.zeros((2, 2))}
        assert CoordinateCheck((16, 32), sizes, changes, np.ones((2, 2))).worst == np.inf


def test_it_draws_a_picture_for_each_activation():
    check = coordinate_check(known, (16, 32), jnp.zeros(()), steps=2)
    axes = check.plot()
    assert [ax.get_title() for ax in axes.flat] == ["h: +0.50", "part/drift: +2.02"]
    lines = axes.flat[0].lines
    assert len(lines) == 3 + 2  # sizes, and dashed changes
    np.testing.assert_array_equal(lines[0].get_ydata(), check.sizes["h"][0])
    axes.flat[0].figure.canvas.draw()
    own = Figure().subplots(1, 2)
    assert check.plot(own)[0] is own[0]


def mlp(width):
    rng, sides = np.random.default_rng(0), [6, width, width, width, 4]
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32),
            "bias": jnp.zeros(b),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sides))
    }


def loss(params, batch):
    x, y = batch
    activations = {}
    for name, layer in params.items():
        x = x @ layer["kernel"] + layer["bias"][None]
        activations[name] = x
        x = jnp.tanh(x) if name != "layer_3" else x
    return jnp.mean((x - y) ** 2), activations


VIEWS = optfn.matrices({"layer_[12]/kernel": optfn.MatrixAxes(-1, -2)}, default=optfn.NO_MATRIX)
OPTIMIZERS = {
    "adam": optfn.adam(0.02),
    "sgd": optfn.sgd(0.3),
    "muon": optfn.muon(0.1, rest=optfn.adam(0.02), views=VIEWS),
}


def checked(tx, transferred, widths=WIDTHS):
    base = mlp(widths[0])

    def make_model(width):
        params = mlp(width)
        if not transferred:
            return tx, params, loss
        transfer = optfn.width_transfer(params, base)
        return transfer.optimizer(tx), transfer.init(params), loss

    return coordinate_check(make_model, widths, (X, Y), steps=6)


def test_with_a_transfer_activations_do_not_depend_on_the_width():
    """And without one they do: with Adam's steps they add up."""
    flat = checked(OPTIMIZERS["adam"], transferred=True)
    hidden = [f"layer_{i}" for i in range(3)]
    for name in hidden:
        assert abs(flat.exponents[name]).max() < 0.1
        assert abs(flat.change_exponents[name]).max() < 0.2
    steep = checked(OPTIMIZERS["adam"], transferred=False)
    assert steep.exponents["layer_2"][-1] > 0.3
    assert steep.change_exponents["layer_2"][0] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_with_other_optimizers_too(name):
    flat = checked(OPTIMIZERS[name], True, (32, 64, 128, 256))
    for layer in ("layer_0", "layer_1", "layer_2"):
        assert abs(flat.exponents[layer][-1]) < 0.1
        assert abs(flat.change_exponents[layer][-1]) < 0.2
    steep = checked(OPTIMIZERS[name], False, (32, 64, 128, 256))
    assert max(abs(x[-1]) for x in steep.change_exponents.values()) > 0.3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: coordinate_check(known, (16,), 0.0),
            ValueError,
            "coordinate_check(widths=...) must be two or more widths, found (16,).",
        ),
        (
            lambda: coordinate_check(lambda width: optfn.sgd(0.1), (16, 32), 0.0),
            TypeError,
            "coordinate_check(make_model=...) must return (optimizer, params, loss), found chain "
            "at width 16.",
        ),
        (
            lambda: coordinate_check(lambda w: (*known(w)[:2], lambda p, b: 0.0), (16, 32), 0.0),
            TypeError,
            "loss(params, batch) must return (loss, activations), found float.",
        ),
        (
            lambda: coordinate_check(
                lambda w: (*known(w)[:2], lambda p, b: (p["w"].sum(), {f"h{w}": p["w"]})),
                (16, 32),
                0.0,
                steps=1,
            ),
            ValueError,
            "activations must have the same names at each width; at 32 and at 16 they differ in "
            "h16, h32.",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
