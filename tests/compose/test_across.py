"""Inside `shard_map` an optimizer in `across` takes the step that it takes on whole arrays."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optfn
from optfn.core.slot_paths import param_of

SPECS = {"w": P("x"), "v": P("x"), "b": P()}
PARAMS = {
    "w": jnp.sin(jnp.arange(24.0)).reshape(8, 3),
    "v": jnp.cos(jnp.arange(4.0)),
    "b": jnp.asarray([0.5, -2.0, 1.0]),
}
GRADS = jax.tree.map(lambda p: 0.3 * p + 0.1, PARAMS)

# By axes of an array, by whole matrices, by its place, or through a function of the params.
REFUSED = {
    "adafactor": "scale_by_factored_rms",
    "adam_mini": "scale_by_adam_mini",
    "sm3": "scale_by_sm3",
    "adaptive_grad_clip": "adaptive_grad_clip",
    "centralize": "centralize",
    "noisy_sgd": "add_noise",
    "flatten": "flatten",
    "lbfgs": "scale_by_lbfgs",
    "lbfgsb": "scale_by_lbfgsb",
    "backtracking": "scale_by_backtracking_linesearch",
    "sophia": "hutchinson_estimator_diag_hessian",
    "muon": "newton_schulz",
    "normuon": "newton_schulz",
    "adamuon": "newton_schulz",
    "scion": "scale_by_lmo",
    "muon on the hyperball": "newton_schulz",
    "muon_clip": "newton_schulz",
    "soap": "scale_by_soap",
    "kl_shampoo": "scale_by_kl_shampoo",
    "kl_soap": "scale_by_kl_soap",
    "galore": "scale_by_galore",
    "apollo": "scale_by_apollo",
    "kron": "whiten_by_kron",
    "psgd_pro": "whiten_by_pro",
    "dion": "scale_by_dion",
    "dion2": "scale_by_dion2",
    "shampoo": "scale_by_shampoo",
    "shampoo in blocks": "scale_by_shampoo",
    "splus": "scale_by_splus",
    "staggered": "scale_by_splus",
    "projected": "projected",
    "store": "store",
    "store in bfloat16": "store",
    "newton_schulz": "newton_schulz",
    "scale_by_matrix_shape": "scale_by_matrix_shape",
    "scale_by_lmo": "scale_by_lmo",
    "scale_by_row_moment": "scale_by_row_moment",
    "normalize_matrices": "normalize_matrices",
    "equalize_rows": "equalize_rows",
    "clip_by_matrix_rms": "clip_by_matrix_rms",
}
ALL = cases.OPTIMIZERS | cases.STAGES


def is_elementwise(tx):
    return vars(type(tx)).get("elementwise", False) and all(map(is_elementwise, tx.contents))


SUMMING = [name for name, tx in ALL.items() if name not in REFUSED and not is_elementwise(tx)]
CHUNKS = [SUMMING[i : i + 8] for i in range(0, len(SUMMING), 8)]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))


def specs_of(state):
    by_path = dict(jax.tree_util.tree_flatten_with_path(PARAMS)[0])

    def spec(path, slot):
        own = param_of(path, slot, by_path)
        return P() if own is None else SPECS[own[-1].key]

    return jax.tree_util.tree_map_with_path(spec, state)


def steps(tx, name):
    """Updates and state after two of them, of params and gradients."""

    def run(params, grads):
        state = tx.init(params)

        def step(state, scale):
            scaled = jax.tree.map(lambda g: scale * g, grads)
            extra = cases.EXTRA_ARGS.get(name, {})
            updates, state = tx.update(scaled, state, params, **extra)
            return state, updates

        return jax.lax.scan(step, state, jnp.asarray([1.0, -0.7]))[::-1]

    return run


@pytest.mark.parametrize("names", CHUNKS, ids=lambda names: names[0])
def test_the_same_as_on_whole_arrays(names, mesh):
    whole = {name: steps(ALL[name], name) for name in names}
    parts = {name: steps(optfn.across(ALL[name], "x"), name) for name in names}
    updates_specs = {name: P(None, *spec) for name, spec in SPECS.items()}

    def all_of(runs):
        return lambda params, grads: {name: run(params, grads) for name, run in runs.items()}

    shapes = jax.eval_shape(all_of(parts), PARAMS, GRADS)
    out = {name: (updates_specs, specs_of(state)) for name, (_, state) in shapes.items()}
    mapped = jax.shard_map(all_of(parts), mesh=mesh, in_specs=(SPECS, SPECS), out_specs=out)
    expected = jax.jit(all_of(whole))(PARAMS, GRADS)
    found = jax.jit(mapped)(PARAMS, GRADS)
    for name in names:
        for x, y in zip(*map(jax.tree.leaves, (found[name], expected[name])), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6, err_msg=name)


def test_without_it_a_norm_is_of_the_part(mesh):
    """What the wrapper is for."""
    tx = optfn.clip_by_global_norm(1.0)

    def clipped(tx):
        def update(g):
            return tx.update(g, tx.init(g))[0]

        mapped = jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
        return jax.jit(mapped)(GRADS["w"])

    assert optfn.global_norm(clipped(tx)) > 1.1
    np.testing.assert_allclose(optfn.global_norm(clipped(optfn.across(tx, "x"))), 1, rtol=1e-6)


def test_a_norm_of_parts(mesh):
    def norms(tree):
        return optfn.global_norm(tree, "x")

    mapped = jax.shard_map(norms, mesh=mesh, in_specs=(SPECS,), out_specs=P())
    np.testing.assert_allclose(jax.jit(mapped)(GRADS), optfn.global_norm(GRADS), rtol=1e-6)


def test_where_parts_are_not_known_it_refuses(mesh):
    mapped = jax.shard_map(
        lambda tree: optfn.global_norm(tree, "x"),
        mesh=mesh,
        in_specs=(SPECS,),
        out_specs=P(),
        check_vma=False,
    )
    with pytest.raises(ValueError, match="does not track which arrays vary over it"):
        mapped(GRADS)


def test_outside_of_a_map_it_changes_nothing():
    tx = optfn.across(optfn.lamb(0.1), "x")
    found, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    wanted, _ = tx.transform.update(GRADS, tx.transform.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", ALL)
def test_each_is_taken_or_refused_by_name(name):
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{REFUSED[name]} is not declared"):
            optfn.across(ALL[name], "x")
    else:
        optfn.across(ALL[name], "x")
