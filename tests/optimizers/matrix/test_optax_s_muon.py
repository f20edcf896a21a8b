"""What goes wrong in optax 0.2.8's Muon, one test a row: it does there, and does not here.

That it does there is asserted for this version alone; a later one may have mended it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax_faults import error_in_optax, wrong_in_optax

import optfn

HERE, THERE = optfn.muon(1.0), optax.contrib.muon(1.0)
KERNEL = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@jax.jit
def _here(tx, params, grads):
    return tx.update(grads, tx.init(params), params)[0]


def first_update(tx, grads):
    """The first update of zeros by these gradients, in float32."""
    params = jax.tree.map(jnp.zeros_like, grads)
    if isinstance(tx, optfn.Transform):
        updates = _here(tx, params, grads)
    else:
        updates = jax.jit(tx.update)(grads, tx.init(params), params)[0]
    return jax.tree.map(lambda u: np.asarray(u, np.float32), updates)


def is_orthogonal(update):
    """Whether the singular values lie as near to each other as the five polynomials bring them."""
    sigma = np.linalg.svd(update, compute_uv=False)
    return bool(np.all(sigma > 0) and np.all(sigma.max(-1) < 2 * sigma.min(-1)))


def is_adam_s(update):
    """Whether all entries are of one size, as in Adam's first step."""
    return bool(np.ptp(abs(update)) < 1e-3 * abs(update).max())


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1e25), ("float32", 1e-30), ("float16", 1e3), ("float16", 1e-5)],
)
def test_the_size_of_the_gradient_does_not_matter(dtype, size):
    """Its squares overflow or vanish there: the update is zero or, of float16, NaN."""
    grads = {"kernel": jnp.asarray(KERNEL * np.float32(size), dtype)}
    assert is_orthogonal(first_update(HERE, grads)["kernel"])
    theirs = first_update(THERE, grads)["kernel"]
    wrong_in_optax(np.isnan(theirs).any() or abs(theirs).max() < 1e-15)


def test_the_momentum_of_bfloat16_params_is_float32():
    """An average of bfloat16 stands still where a twentieth of the change is below its last bit."""
    params = {"kernel": jnp.zeros((6, 4), jnp.bfloat16)}

    def dtypes(tx):
        return {x.dtype.name for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if x.ndim}

    assert dtypes(HERE) == {"float32"}
    wrong_in_optax("bfloat16" in dtypes(THERE))


def test_the_coefficients_are_no_state():
    """From there they would come back from a checkpoint, whatever the new optimizer says."""

    def shapes(tx):
        return {x.shape for x in jax.tree.leaves(jax.eval_shape(tx.init, {"kernel": KERNEL}))}

    assert shapes(HERE) == {(), (6, 4)}
    wrong_in_optax((3,) in shapes(THERE))


@pytest.mark.parametrize("name", optfn.linalg.POLYNOMIALS)
def test_polynomials_are_known_by_name(name):
    assert np.isfinite(
        first_update(optfn.muon(1.0, ns_coeffs=name), {"kernel": KERNEL})["kernel"]
    ).all()


def test_the_preset_that_the_docs_name_raises_in_optax():
    with error_in_optax(ValueError, match="Unknown ns_coeff preset"):
        optax.contrib.muon(1.0, ns_coeffs="muon").init({"kernel": KERNEL})


VIEWS = optfn.matrices(
    {
        "layers/**/kernel": optfn.MatrixAxes(rows=-1, columns=-2),
        "conv/kernel": optfn.MatrixAxes(rows=-1, columns=(0, 1, 2)),
    }
)


def model():
    """What a scanned network with a convolution has, as gradients."""
    rng = np.random.default_rng(1)
    shapes = {
        "layers": {"dense": {"kernel": (3, 6, 4), "bias": (3, 4)}, "norm": {"scale": (3, 6)}},
        "conv": {"kernel": (2, 2, 3, 5)},
        "embed": {"embedding": (7, 6)},
        "head": {"kernel": (6, 7)},
    }
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_a_scanned_model_has_its_kernels_orthogonalized_and_nothing_else():
    ours = first_update(optfn.muon(1.0, views=VIEWS), model())
    theirs = first_update(THERE, model())

    def parts(updates):
        layers = updates["layers"]
        kernels = [layers["dense"]["kernel"], updates["conv"]["kernel"].reshape(-1, 5)]
        others = [layers["dense"]["bias"], layers["norm"]["scale"], updates["embed"]["embedding"]]
        return kernels, others, updates["head"]["kernel"]

    kernels, others, head = parts(ours)
    assert all(map(is_orthogonal, kernels))
    assert all(map(is_adam_s, [*others, head]))
    kernels, others, head = parts(theirs)
    wrong_in_optax(not all(map(is_orthogonal, kernels)))
    wrong_in_optax(not all(map(is_adam_s, others)))
    wrong_in_optax(not is_adam_s(head))


def test_what_is_no_matrix_by_itself_is_asked_for():
    """Where their convolution silently goes to Adam."""
    with pytest.raises(ValueError, match="'conv/kernel' has 4 axes"):
        HERE.init(model() | {"layers": {}})
    THERE.init(model())


def test_the_momentum_lies_where_its_params_do_under_jit():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    along = NamedSharding(mesh, PartitionSpec("x"))
    params = {"kernel": jax.device_put(KERNEL, along)}

    def lies_along(tx):
        state = jax.jit(tx.init)(params)
        return [
            x.sharding.is_equivalent_to(along, 2) for x in jax.tree.leaves(state) if x.ndim == 2
        ]

    assert lies_along(HERE) == [True]
    wrong_in_optax(lies_along(THERE) == [False])
