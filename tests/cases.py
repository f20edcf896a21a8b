"""Every optimizer and stage of the library, once, for the tests that run over all of them."""

import jax
import jax.numpy as jnp

import optfn
from optfn import projections, schedules, storage
from optfn.core.dtypes import compute_dtype
from optfn.core.tree import leaf_paths


def decays(path, leaf):
    return leaf.ndim > 1


def not_the_scale(path, leaf):
    return leaf.ndim > 0


def by_shape(path, leaf):
    return "matrix" if leaf.ndim > 1 else "rest"


def layers_above(path, leaf):
    return 2 - leaf.ndim


def leaf_rate(path, leaf):
    return 0.5**leaf.ndim


def is_bias(path, leaf):
    return leaf.ndim == 1


def not_every_third(step):
    return step % 3 != 2


def loss(params):
    """Of any tree, with a Hessian that is not constant."""
    leaves = jax.tree.leaves(params)
    return sum(
        (jnp.sum(optfn.abs_sq(jnp.sin(p))) for p in leaves), start=jnp.zeros((), jnp.float32)
    )


OPTIMIZERS = {
    "sgd": optfn.sgd(0.05),
    "sgd momentum": optfn.sgd(0.01, 0.9),
    "sgd nesterov": optfn.sgd(0.01, 0.9, nesterov=True),
    "momentum": optfn.momentum(0.1),
    "momentum corrected": optfn.momentum(0.1, bias_correction=True),
    "rmsprop": optfn.rmsprop(0.02),
    "rmsprop eps outside": optfn.rmsprop(0.02, eps_in_sqrt=False, bias_correction=True),
    "rmsprop centered": optfn.rmsprop(0.02, eps=1e-3, centered=True, momentum=0.9, nesterov=True),
    "adagrad": optfn.adagrad(0.2),
    "adam": optfn.adam(0.1),
    "adam nesterov": optfn.adam(0.1, nesterov=True),
    "adamw": optfn.adamw(
        schedules.warmup_cosine(0.1, 2, 30, init_value=0.01), weight_decay=0.01, mask=decays
    ),
    "amsgrad": optfn.amsgrad(0.1),
    "lion": optfn.lion(0.03, mask=not_the_scale),
    "nadam": optfn.nadam(0.1),
    "nadamw": optfn.nadamw(0.1, weight_decay=0.01),
    "adabelief": optfn.adabelief(0.1, eps=1e-8),
    "adamax": optfn.adamax(0.1),
    "adamaxw": optfn.adamaxw(0.1, weight_decay=0.01, mask=decays),
    "adan": optfn.adan(0.1, weight_decay=0.01),
    "radam": optfn.radam(0.1, b2=0.9),
    "yogi": optfn.yogi(0.1),
    "adadelta": optfn.adadelta(1.0, eps=1e-3),
    "rprop": optfn.rprop(0.05),
    "sign_sgd": optfn.sign_sgd(0.03),
    "signum": optfn.signum(0.03),
    "optimistic_gradient_descent": optfn.optimistic_gradient_descent(0.02),
    "optimistic_adam_v2": optfn.optimistic_adam_v2(0.05),
    "grams": optfn.grams(0.1, weight_decay=0.01),
    "cautious": optfn.chain(optfn.cautious(optfn.scale_by_adam()), optfn.sgd(0.1)),
    "laprop": optfn.laprop(0.1),
    "lars": optfn.lars(0.1, trust_coefficient=0.5),
    "lamb": optfn.lamb(0.1),
    "fromage": optfn.fromage(0.1),
    "novograd": optfn.novograd(0.02),
    "sm3": optfn.sm3(0.2),
    "noisy_sgd": optfn.noisy_sgd(0.05, eta=1e-4),
    "acprop": optfn.acprop(0.05, eps=1e-3),
    "ademamix": optfn.ademamix(0.05, alpha=schedules.linear(0.0, 2.0, 10)),
    "simplified_ademamix": optfn.simplified_ademamix(0.02, b1=0.9, alpha=1.0),
    "adopt": optfn.adopt(0.1, b2=0.99),
    "madgrad": optfn.madgrad(0.1),
    "qhm": optfn.qhm(0.1, 0.9),
    "qhadam": optfn.qhadam(0.1),
    "adafactor": optfn.adafactor(0.3, min_dim_size_to_factor=2, momentum=0.5),
    "mars": optfn.chain(optfn.correct_by_mars(), optfn.adam(0.1, 0.95, 0.99)),
    "orthograd": optfn.chain(optfn.orthogonalize_to_params(), optfn.sgd(0.05)),
    "dog": optfn.dog(init_step=("distance", 0.1)),
    "dowg": optfn.dowg(init_estim_sq_dist=0.01),
    "layer-wise dog": optfn.chain(
        optfn.scale_by_distance_over_gradients(0.1), optfn.scale_by_learning_rate(1.0)
    ),
    "prodigy": optfn.prodigy(estim_lr0=0.1, beta3=0.9, weight_decay=0.01),
    "dadapt_adamw": optfn.dadapt_adamw(estim_lr0=0.1),
    "cocob": optfn.cocob(alpha=10.0),
    "polyak_sgd": optfn.polyak_sgd(0.05),
    "momo": optfn.momo(0.05, weight_decay=0.01),
    "momo_adam": optfn.momo_adam(0.05, adapt_lower_bound=True),
    "mechanize": optfn.mechanize(optfn.adam(0.5), s_init=0.1, num_betas=3),
    "schedule_free_sgd": optfn.schedule_free_sgd(0.1),
    "schedule_free_adamw": optfn.schedule_free_adamw(0.1, warmup_steps=2),
    "primal_averaging": optfn.primal_averaging(optfn.sgd(0.05), 0.9, 0.8),
    "ema_nesterov": optfn.ema_nesterov(optfn.sgd(0.05), 0.9, 0.5),
    "sam": optfn.sam(optfn.sgd(0.1), optfn.chain(optfn.normalize(), optfn.sgd(0.01))),
    "lookahead": optfn.lookahead(optfn.adam(0.1), 2, 0.5, reset_state=True),
    "ema_of_params": optfn.ema_of_params(optfn.sgd(0.05, 0.9), schedules.ema_warmup(0.9)),
    "mean_of_params": optfn.mean_of_params(optfn.adam(0.1), start=1),
    "reduce_on_plateau": optfn.chain(optfn.sgd(0.1), optfn.reduce_on_plateau(0.5, 20)),
    "flatten": optfn.flatten(optfn.adam(0.1)),
    "sophia": optfn.sophia(0.05, gamma=0.1, update_interval=2),
    "stable_adamw": optfn.stable_adamw(0.1, mask=decays),
    "adam_mini": optfn.adam_mini(0.1, weight_decay=0.01),
    "hyperball": optfn.chain(optfn.scale_by_adam(), optfn.hyperball(0.01)),
    "muon": optfn.muon(0.05, rest=optfn.adam(0.1)),
    "normuon": optfn.normuon(0.05, weight_decay=0.1, rest=optfn.sign_sgd(0.03)),
    "adamuon": optfn.adamuon(0.05, rest=optfn.sign_sgd(0.03)),
    "scion": optfn.scion(0.05, radius=2.0),
    "muon on the hyperball": optfn.partition_matrices(
        optfn.chain(optfn.scale_by_muon(), optfn.hyperball(0.05, views=optfn.matrices())),
        optfn.sign_sgd(0.03),
    ),
    "muon_clip": optfn.muon_clip(0.05, 1.5, query="w", key="b", head_axis=-1),
    # The kit gives a gradient twice; where it has no entries, eps must be above what rounds.
    "soap": optfn.soap(0.1, eps=0.1, precondition_frequency=2, rest=optfn.adam(0.1)),
    "kl_shampoo": optfn.kl_shampoo(0.05, precondition_frequency=1, rest=optfn.adam(0.1)),
    "kl_soap": optfn.kl_soap(0.1, eps=0.1, precondition_frequency=2, rest=optfn.adam(0.1)),
    "galore": optfn.galore(0.1, rank=1, update_proj_gap=2, weight_decay=0.01),
    "apollo": optfn.apollo(
        0.05, rank=1, update_proj_gap=2, max_growth=10.0, rest=optfn.sign_sgd(0.03)
    ),
    "kron": optfn.kron(0.05, preconditioner_update_probability=0.5),
    "psgd_pro": optfn.psgd_pro(
        0.05, preconditioner_update_probability=0.5, rest=optfn.sign_sgd(0.03)
    ),
    "dion": optfn.dion(0.05, 0.5, rest=optfn.sign_sgd(0.03)),
    "dion2": optfn.dion2(0.05, 0.5, rest=optfn.adam(0.1)),
    "shampoo": optfn.shampoo(0.1, precondition_frequency=2),
    "shampoo in blocks": optfn.shampoo(
        0.1, b2=0.9, exponent=0.5, max_preconditioner_dim=2, max_square_dim=1
    ),
    "splus": optfn.splus(0.1, inverse_every=2, rest=optfn.adam(0.1)),
    "cautious decay": optfn.chain(
        optfn.scale_by_adam(), optfn.add_cautious_decay(0.1), optfn.scale_by_learning_rate(0.1)
    ),
    "corrected decay": optfn.chain(
        optfn.scale_by_adam(),
        optfn.descend_with_corrected_decay(schedules.linear(0.1, 0.01, 20), 0.1, 0.1),
    ),
    "decay after the step": optfn.chain(
        optfn.scale_by_adam(), optfn.descend_then_decay(0.1, 0.1, start=1)
    ),
    "independent decay": optfn.chain(
        optfn.scale_by_adam(),
        optfn.descend_with_independent_decay(schedules.linear(0.1, 0.01, 20), 0.1, 1e-3),
    ),
    "partition": optfn.partition(
        {"matrix": optfn.adam(0.1), "rest": optfn.sgd(0.05, 0.9)},
        by_shape,
    ),
    "freeze": optfn.freeze(optfn.adam(0.1), is_bias),
    "across": optfn.across(optfn.sgd(0.05, 0.9), "x"),
    "with_leaf_rates": optfn.with_leaf_rates(optfn.adamw(0.1, weight_decay=0.1), leaf_rate),
    "staggered": optfn.staggered(optfn.splus(0.1, inverse_every=2, rest=optfn.adam(0.1))),
    "own_step": optfn.own_step(optfn.adam(schedules.linear(0.1, 0.05, 9))),
    "keep_params_nonnegative": optfn.chain(optfn.adam(0.1), optfn.keep_params_nonnegative()),
    "projected": optfn.projected(optfn.adam(0.1), projections.l2_ball(4.0)),
    "store": optfn.store(optfn.adamw(0.1), storage.int8(), leaves=True),
    "store in bfloat16": optfn.store(optfn.sgd(0.05, 0.9), storage.bf16(), leaves=True),
    "compensated": optfn.compensated(optfn.sgd(0.05, 0.9)),
    "master": optfn.master(optfn.adam(0.1)),
    "accumulate": optfn.accumulate(optfn.adam(0.1), 2),
    "accumulate weighted": optfn.accumulate(optfn.sgd(0.1, 0.5), 2, weighted=True),
    "skip_nonfinite": optfn.skip_nonfinite(optfn.sgd(0.01, 0.9)),
    "apply_if_finite": optfn.apply_if_finite(optfn.sgd(0.01, 0.9), 3),
    "skip_spikes": optfn.skip_spikes(optfn.sgd(0.01, 0.9), warmup_steps=2),
    "loss_scale": optfn.loss_scale(optfn.sgd(0.1), 2.0, growth_interval=10, max_scale=4.0),
    "monitor": optfn.monitor(
        optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adam(schedules.linear(0.1, 0.05, 20)))
    ),
    "conditionally_mask": optfn.conditionally_mask(optfn.sgd(0.01, 0.9), not_every_third),
    "lbfgs": optfn.lbfgs(memory_size=2),
    "lbfgsb": optfn.lbfgsb(memory_size=2),
    "backtracking": optfn.chain(
        optfn.sgd(1.0), optfn.scale_by_backtracking_linesearch(5, store_grad=True)
    ),
}


def gives_a_transform(function):
    """Whether a function is annotated to return an optimizer or a stage."""
    hint = getattr(function, "__annotations__", {}).get("return")
    return isinstance(hint, type) and issubclass(hint, optfn.Transform)


def bowl(params):
    """Of any tree, the value in float32 or wider; of a vector the kit's problem."""
    leaves = jax.tree.leaves(params)
    parts = [jnp.sum(optfn.abs_sq(p.astype(compute_dtype(p.dtype)) - 1)) for p in leaves]
    return sum(parts, start=jnp.zeros((), jnp.float32)) / 2


def searched(grads, params):
    """What a line search must be given."""
    value, grad = jax.value_and_grad(bowl)(params)
    return {"value": value, "grad": jax.tree.map(jnp.conj, grad), "value_fn": bowl}


def bounded(grads, params):
    """A search, and a box without sides."""
    far = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), params)
    return searched(grads, params) | {"box": optfn.Box(jax.tree.map(jnp.negative, far), far)}


def largest_logits(grads, params):
    """Of the kit's weights as queries and its biases as keys, a head for each output."""
    by_path = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    keys = {path[:-1]: leaf for path, leaf in by_path.items() if f"/{path}".endswith("/b")}
    blocks = [path[:-1] for path in by_path if f"/{path}".endswith("/w") and path[:-1] in keys]
    largest = {block.rstrip("/"): jnp.arange(1.0, 1.0 + keys[block].shape[-1]) for block in blocks}
    return {"max_logits": largest.get("", largest)}


# What `update` must be given, for those that need more than the gradients.
EXTRA_ARGS = (
    {name: {"value": 2.0} for name in ("polyak_sgd", "momo", "momo_adam", "reduce_on_plateau")}
    | {"sophia": {"obj_fn": loss}, "accumulate weighted": {"weight": 3.0}}
    | dict.fromkeys(("lbfgs", "backtracking"), searched)
    | {"lbfgsb": bounded}
    | {"muon_clip": largest_logits}
)

STAGES = {
    "scale": optfn.scale(2.0),
    "scale_by_layer_decay": optfn.scale_by_layer_decay(0.75, layers_above),
    "scale_by_learning_rate": optfn.scale_by_learning_rate(2.0, flip_sign=False),
    "scale_by_schedule": optfn.scale_by_schedule(schedules.linear(1.0, 0.5, 10)),
    "trace": optfn.trace(0.9, nesterov=True),
    "ema": optfn.ema(0.9),
    "add_decayed_weights": optfn.add_decayed_weights(0.1),
    "clip": optfn.clip(0.5),
    "clip_by_global_norm": optfn.clip_by_global_norm(1.0),
    "clip_by_norm": optfn.clip_by_norm(0.5),
    "clip_by_block_rms": optfn.clip_by_block_rms(0.5),
    "adaptive_grad_clip": optfn.adaptive_grad_clip(0.1),
    "normalize_by_update_norm": optfn.normalize_by_update_norm(),
    "centralize": optfn.centralize(),
    "newton_schulz": optfn.newton_schulz(),
    "scale_by_matrix_shape": optfn.scale_by_matrix_shape("rms"),
    "scale_by_lmo": optfn.scale_by_lmo("row"),
    "scale_by_row_moment": optfn.scale_by_row_moment(eps=1e-3, side="longer"),
    "normalize_matrices": optfn.normalize_matrices(1e-3),
    "equalize_rows": optfn.chain(optfn.equalize_rows(), optfn.scale(2.0)),
    "clip_by_matrix_rms": optfn.clip_by_matrix_rms(0.5),
    "scale_by_param_block_norm": optfn.scale_by_param_block_norm(),
    "scale_by_param_block_rms": optfn.scale_by_param_block_rms(),
    "scale_by_trust_ratio": optfn.scale_by_trust_ratio(),
    "scale_by_rms": optfn.scale_by_rms(),
    "scale_by_stddev": optfn.scale_by_stddev(eps=1e-3),
    "scale_by_rss": optfn.scale_by_rss(),
    "scale_by_adam": optfn.scale_by_adam(eps_root=1e-6),
    "scale_by_amsgrad": optfn.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False),
    "scale_by_lion": optfn.scale_by_lion(),
    "zero_nans": optfn.chain(optfn.zero_nans(), optfn.scale(2.0)),
    "gradient_noise_scale": optfn.gradient_noise_scale(32),
    "conditionally_transform": optfn.conditionally_transform(optfn.trace(0.9), not_every_third),
    "masked in a chain": optfn.chain(
        optfn.scale_by_adam(), optfn.masked(optfn.trace(0.5), decays).named("momentum")
    ),
    "named chain": optfn.chain(
        optfn.chain(optfn.scale_by_rms(), optfn.trace(0.5)).named("inner"), optfn.trace(0.2)
    ),
}
