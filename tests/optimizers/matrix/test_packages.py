"""The paths of packages' matrix optimizers, as recorded, walked by optfn's and by its stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import CASES, GOLDEN, assert_on_path, paths, problem, shapes_of, with_normals

import optfn
from optfn.optimizers.matrix import psgd_pro


def descent(rate, decay=0.0):
    return optfn.add_decayed_weights(decay), optfn.scale_by_learning_rate(rate)


def average(beta):
    return optfn.ema(beta, debias=False)


def orthogonal(coefficients="keller_jordan"):
    """Where the package divides by the larger of the norm and eps, not by their sum."""
    return optfn.newton_schulz(coefficients, eps=0.0)


def drawn(name, record, *args, **kwargs):
    return with_normals(getattr(optfn, name), record)(*args, **kwargs)


def kron(record, rate=0.01, b1=0.9, weight_decay=0.0, **kwargs):
    return optfn.chain(
        optfn.ema(b1),
        drawn("whiten_by_kron", record, **kwargs),
        optfn.clip_by_matrix_rms(1.1),
        *descent(rate, weight_decay),
    )


def dion(record, rate, decay, *args, **kwargs):
    direction = drawn("scale_by_dion", record, *args, **kwargs)
    return optfn.chain(direction, optfn.scale_by_matrix_shape("spectral"), *descent(rate, decay))


def pro(momentum, rate, decay, precond_lr, beta_lip, precond_init_scale, limit=jnp.inf, **kwargs):
    """Without noise, and with one limit or none."""
    return optfn.chain(
        momentum,
        optfn.whiten_by_pro(
            1.0,
            precond_lr,
            beta_lip,
            damping=0.0,
            precond_init_scale=precond_init_scale,
            **{"memory_save_mode": "none", **kwargs},
        ),
        optfn.clip_by_matrix_rms(limit),
        *descent(rate, decay),
    )


def adam_in_low_rank(b1, b2, eps):
    """Whose eps is added before the second moment is corrected."""
    raised = optfn.schedules.custom(lambda step: eps / jnp.sqrt(1 - b2 ** (step + 1)))
    return optfn.scale_by_adam(b1, b2, raised)


def galore(rate, decay, gap, b1=0.9, b2=0.999, eps=1e-6, side="smaller"):
    return optfn.chain(
        optfn.scale_by_galore(2, gap, 0.25, adam_in_low_rank(b1, b2, eps), side=side),
        optfn.descend_then_decay(rate, decay),
    )


def apollo(record, decay, *args, **kwargs):
    direction = drawn("scale_by_apollo", record, *args, **kwargs)
    return optfn.chain(direction, optfn.descend_then_decay(0.02, decay))


RECORDED = {
    "muon_settings_of_torch": optfn.muon(0.01, (3.0, -3.2, 1.2), 3, 0.8, 0.0, 0.3, nesterov=False),
    "muon_match_rms_of_torch": optfn.muon(
        0.01, beta=0.9, eps=0.0, weight_decay=0.1, consistent_rms=0.2
    ),
    "muon_quintic": optfn.muon(0.01, "quintic", beta=0.9, eps=0.0, weight_decay=0.1),
    "muon_gram": optfn.muon(0.01, eps=0.0, consistent_rms=0.2),
    "muon_unit_rms": optfn.muon(
        *(0.01, "hybrid", None, 0.9, 0.0, 0.1),
        nesterov=False,
        shape_scale="spectral",
    ),
    "muon_hyperball": optfn.chain(
        optfn.scale_by_muon("cans", beta=0.9, eps=0.0), optfn.hyperball(0.01)
    ),
    "normuon_preserve_norm": optfn.chain(
        optfn.scale_by_muon(beta=0.9, eps=0.0),
        optfn.scale_by_row_moment(0.8, 1e-3),
        optfn.scale_by_matrix_shape("width"),
        *descent(0.02, 0.1),
    ),
    "normuon_match_rms": optfn.chain(
        optfn.scale_by_muon("quintic", eps=0.0, nesterov=False),
        optfn.scale_by_row_moment(0.95, 0.0),
        optfn.normalize_matrices(),
        optfn.scale_by_matrix_shape("rms", 0.2),
        *descent(0.01),
    ),
    "normuon_longer": optfn.chain(
        optfn.scale_by_muon("quintic", beta=0.9, eps=0.0),
        optfn.scale_by_row_moment(0.95, 0.0, side="longer"),
        optfn.scale_by_matrix_shape("rms"),
        *descent(0.01, 0.1),
    ),
    "adamuon": optfn.adamuon(0.02),
    "adamuon_settings": optfn.adamuon(0.01, 0.8, 1e-3, 0.2, nesterov=False, ns_steps=3),
    "adamuon_first": optfn.chain(
        average(0.9),
        orthogonal(),
        optfn.scale_by_rms(0.95, 1e-10, eps_in_sqrt=False, bias_correction=True),
        optfn.normalize_matrices(1e-10),
        optfn.scale_by_matrix_shape("rms", 0.2),
        *descent(0.02, 0.1),
    ),
    "adamuon_unscaled": optfn.chain(
        average(0.9),
        orthogonal("quintic"),
        optfn.scale_by_rms(0.9, 1e-3, eps_in_sqrt=False),
        optfn.scale_by_matrix_shape("rms", 0.2),
        *descent(0.01, 0.1),
    ),
    "scion_constrained": optfn.chain(
        average(0.8),
        orthogonal(),
        optfn.scale_by_matrix_shape("spectral", 3.0),
        *descent(0.02, 1.0),
    ),
    "scion_of_signs": optfn.scion(0.02, "sign", 3.0),
    "scion_of_columns": optfn.scion(0.02, "column", 3.0, weight_decay=0.0),
    "scion_of_rows": optfn.scion(0.02, "row", 1.0, 0.7, 0.0),
    "scion_emerging": optfn.chain(
        average(0.8),
        orthogonal("quintic"),
        optfn.scale_by_matrix_shape("spectral", 4.0),
        *descent(0.02, 1.0),
    ),
    "dion": dion("dion", 0.01, 0.01),
    "dion_of_low_rank": dion("dion_of_low_rank", 0.02, 0.1, 0.5, 0.8, 1e-3, rank_multiple_of=2),
    "soap": optfn.soap(3e-3, 0.9, 0.95, 1e-6, 0.1, shampoo_beta=0.8, precondition_frequency=2),
    "soap_one_sided": optfn.soap(precondition_frequency=3, max_precond_dim=4),
    "shampoo_plain": optfn.chain(
        optfn.scale_by_shampoo(b1=0.0, eps=1e-3), optfn.scale_by_learning_rate(0.1)
    ),
    "shampoo_in_blocks": optfn.shampoo(
        *(0.01, 0.8, 0.95, 1e-4, 0.1, None, 2, 3, 5),
        grafting=optfn.scale_by_adam(0.8, 0.9, 1e-6),
    ),
    "splus_settings": optfn.splus(0.2, 0.8, 0.95, 0.2, inverse_every=3, max_dim=6),
    "kron": kron("kron", 3e-4),
    "kron_settings": kron(
        *("kron_settings", 0.01, 0.8, 0.1),
        precond_lr=0.3,
        preconditioner_update_probability=0.4,
        precond_init_scale=0.1,
    ),
    "kron_one_diag": kron("kron_one_diag", memory_save_mode="one_diag"),
    "kron_smart_one_diag": kron(
        "kron_smart_one_diag", memory_save_mode="smart_one_diag", max_size_triangular=3
    ),
    "psgd_pro": pro(average(0.9), 0.01, 0.01, 0.3, 0.9, 1.0),
    "psgd_pro_settings": pro(average(0.7), 0.01, 0.2, 0.1, 0.5, 0.25, 0.9),
    "psgd_pro_heavyball": pro(optfn.ema(0.9), 0.01, 0.1, 0.1, 0.9, 0.5),
    "psgd_pro_diagonal": pro(
        *(optfn.ema(0.7), 0.01, 0.0, 0.3, 0.5, 1.0), memory_save_mode="all_diag"
    ),
    "galore": galore(0.02, 0.1, 100),
    "galore_of_the_larger_side": galore(0.02, 0.0, 100, 0.8, 0.9, 1e-3, "larger"),
    "galore_without_momentum": galore(0.02, 0.0, 5, 0.0, 0.9),
    "apollo": apollo("apollo", 0.1, 2, 5),
    "apollo_of_tensors": apollo(
        *("apollo_of_tensors", 0.0, 3, 5, 4.0, "tensor", 0.8, 0.9, 1e-3), side="larger"
    ),
    "apollo_by_decomposition": optfn.apollo(0.02, 2, 100, proj="svd"),
    "apollo_mini": apollo("apollo_mini", 0.0, 1, 5, 128.0, "tensor"),
}

TOLERANCES = dict.fromkeys(("psgd_pro", "psgd_pro_settings"), 1e-7)  # adds 1e-8 to norms
TOLERANCES |= dict.fromkeys(
    ("psgd_pro_heavyball", "psgd_pro_diagonal"), 1e-7
)  # settings in float32


# By how many products a package estimates norms, and how far it rotates.
PRODUCTS, LONGEST = {"psgd_pro_heavyball": 5}, {"psgd_pro_heavyball": 0.5}


@pytest.mark.parametrize("record", RECORDED)
def test_walks_the_recorded_path(record, x64, monkeypatch):
    monkeypatch.setattr(psgd_pro, "PRODUCTS", PRODUCTS.get(record, 4))
    monkeypatch.setattr(psgd_pro, "LONGEST", LONGEST.get(record, 1 / 8))
    tolerance = TOLERANCES.get(record, 1e-11)
    for shape, found in paths(RECORDED[record], shapes_of(record)).items():
        assert_on_path(found, GOLDEN[f"{record}/{shape}"], problem(shape)[0], tolerance)


IN_HEADS = optfn.matrices({"**/kernel": optfn.MatrixAxes((-2, -1), -3)})
CLIPPED = {
    "muon_clip": optfn.muon_clip(0.02, 3.0, eps=0.0, views=IN_HEADS),
    "muon_clip_of_queries": optfn.muon_clip(
        0.01, 2.0, 0.8, weight_decay=0.0, eps=0.0, views=IN_HEADS
    ),
}


@pytest.mark.parametrize("record", CLIPPED)
def test_walks_the_recorded_path_of_queries_and_keys(record, x64):
    """As kernels `(in, heads, size)`; those of the package are `(heads * size, in)`."""

    def kernels(x):
        return jnp.asarray(x).mT.reshape(*x.shape[:-2], x.shape[-1], 4, -1)

    params, grads = (
        {role: {"kernel": kernels(problem(role)[i])} for role in ("query", "key")} for i in (0, 1)
    )

    @jax.jit
    def run(tx, params, grads, logits):
        def step(carry, given):
            new = optfn.step(tx, carry[0], given[0], carry[1], max_logits=given[1])
            return new, new[0]

        return jax.lax.scan(step, (params, tx.init(params)), (grads, logits))[1]

    found = run(CLIPPED[record], params, grads, GOLDEN["logits"])
    for role in params:
        wanted = GOLDEN[f"{record}/{role}"]
        rows = np.asarray(found[role]["kernel"]).reshape(len(wanted), 3, -1).mT
        assert_on_path(rows, wanted, problem(role)[0])


def test_every_recorded_path_is_walked():
    assert CASES.keys() == RECORDED.keys() | CLIPPED.keys()
