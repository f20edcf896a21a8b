"""How arrays are matrices, in the words of optax's Muon and GaLore."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optfn

ARRAYS = {
    "w": jnp.cos(jnp.arange(12.0)).reshape(3, 4),
    "heads": jnp.sin(jnp.arange(24.0) ** 2).reshape(2, 3, 4),
    "b": jnp.arange(3.0),
}


def of_muon(library, **given):
    if library is optfn:
        given |= {"debias": True, "rest": optfn.nadam(0.1)}
    return contrib(library).muon(0.1, (3.4445, -4.7750, 2.0315), 5, eps=1e-8, **given)


def scaled_by_muon(library, **given):
    given |= {"debias": True} if library is optfn else {}
    return contrib(library).scale_by_muon(TABLES["dion"], eps=1e-8, **given)


def contrib(library):
    return optax.contrib if library is optax else library


TABLES = optax.contrib._muon._NS_COEFFS_PRESET_DICT
MUON, GALORE = optax.contrib.MuonDimensionNumbers, optax.contrib.GaLoreDimensionNumbers
DESCRIBED = {
    "muon": (of_muon, "muon_weight_dimension_numbers", MUON),
    "scale_by_muon": (scaled_by_muon, "weight_dimension_numbers", MUON),
    "galore": (lambda x, **k: contrib(x).galore(0.1, 2, **k), "weight_dimension_numbers", GALORE),
    "scale_by_galore": (
        lambda x, **k: contrib(x).scale_by_galore(2, **k),
        "weight_dimension_numbers",
        GALORE,
    ),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in DESCRIBED for form in ("tree", "function")),
        ("muon", "one for all"),
        ("galore", "one for all"),
    ],
)
def test_dimension_numbers_say_how_arrays_are_matrices(name, form):
    make, argument, numbers = DESCRIBED[name]
    by_name = {"w": numbers(), "heads": numbers(reduction_axis=0, output_axis=(1, 2)), "b": None}
    left_out = {"b"} if name == "scale_by_muon" else set()  # which takes matrices alone in optax
    if form == "one for all":
        left_out |= {"heads"} | ({"b"} if name == "muon" else set())
    arrays = {k: x for k, x in ARRAYS.items() if k not in left_out}
    tree = {k: by_name[k] for k in arrays}
    given = {"tree": tree, "function": lambda params: tree, "one for all": numbers()}[form]

    @jax.jit
    def updates(arrays):
        txs = [make(library, **{argument: given}) for library in (optax, optfn)]
        return [tx.update(arrays, tx.init(arrays), arrays)[0] for tx in txs]

    chex.assert_trees_all_close(*updates(arrays), rtol=1e-4, atol=1e-5)


def test_dimension_numbers_are_data():
    same = [optfn.muon(0.1, muon_weight_dimension_numbers={"w": MUON()}) for _ in range(2)]
    assert jax.tree.structure(same[0]) == jax.tree.structure(same[1])
    other = optfn.muon(0.1, muon_weight_dimension_numbers={"w": MUON(1, 0)})
    assert jax.tree.structure(other) != jax.tree.structure(same[0])


@pytest.mark.parametrize("name", DESCRIBED)
def test_dimension_numbers_that_do_not_fit_are_refused(name):
    make, argument, numbers = DESCRIBED[name]
    own = f"{name}.{argument}=...."
    with pytest.raises(ValueError, match=rf"{own} does not fit the params: it has no value at 'w'"):
        make(optfn, **{argument: {"b": None}}).init({"w": ARRAYS["w"], "b": ARRAYS["b"]})
    with pytest.raises(TypeError, match=rf"{own} at 'w' must be a MatrixAxes, found 3"):
        make(optfn, **{argument: {"w": 3}})
    with pytest.raises(TypeError, match=rf"{name}\(.*=..., .*=...\) are the same argument"):
        make(optfn, **{argument: numbers(), "views": optfn.NO_MATRIX})


def test_optaxs_names_of_polynomials_and_norms():
    for name, theirs in TABLES.items():
        rows = np.reshape(theirs, (-1, 3))
        np.testing.assert_allclose(np.asarray(optfn.linalg.polynomials(name))[: len(rows)], rows)
    grads = {"w": ARRAYS["w"]}

    @jax.jit
    def updates(grads):
        return [
            tx.update(grads, tx.init(grads), grads)[0]
            for norm in ("aol", "schatten")
            for tx in (of_muon(x, preconditioning=norm) for x in (optax, optfn))
        ]

    rows, rows_here, schatten, schatten_here = updates(grads)
    chex.assert_trees_all_close(rows, rows_here, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(schatten, schatten_here, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"muon\(preconditioning=...\) must be one of"):
        optfn.muon(0.1, preconditioning="spectral")


def test_adaptive_steps_are_optaxs():
    grads = {"w": ARRAYS["w"] + 1j * ARRAYS["w"][::-1], "v": ARRAYS["w"].T}

    @jax.jit
    def updates(grads):
        return [
            tx.update(grads, tx.init(grads), grads)[0]
            for tx in (of_muon(x, adaptive=True) for x in (optax, optfn))
        ]

    chex.assert_trees_all_close(*updates(grads), rtol=1e-4, atol=1e-5)
