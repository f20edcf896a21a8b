"""The counterpart in optfn of each public name of optax's optimizers, transforms and schedules."""

import inspect

import optax

import optfn

# Counterparts with another name, or with other arguments.
ELSEWHERE = {
    "freeze": "freeze",
    "apply_if_finite": "skip_nonfinite",
    "skip_large_updates": "skip_spikes",
    "skip_not_finite": "skip_nonfinite",
    "GradientTransformation": "Transform",
    "GradientTransformationExtraArgs": "Transform",
    "Schedule": "Schedule",
    "identity": "chain",
    "inject_hyperparams": "hyperparameters",
    "inject_stateful_hyperparams": "hyperparameters",
    # Functions before an optimizer: gradients per example are not shaped like the params.
    "differentially_private_aggregate": "private_mean",
    "dpsgd": "private_mean",
    "snapshot": "monitor",
    "MultiSteps": "accumulate",
    "apply_every": "accumulate",
    "multi_transform": "partition",
    "named_chain": "chain",
    "safe_norm": "global_norm",
    "selective_transform": "freeze",
    "schedule_free_eval_params": "evaluation_params",
    "with_extra_args_support": "Transform",
    "constant_schedule": "schedules.constant",
    "cosine_decay_schedule": "schedules.cosine",
    "cosine_onecycle_schedule": "schedules.one_cycle",
    "exponential_decay": "schedules.exponential",
    "join_schedules": "schedules.join",
    "linear_onecycle_schedule": "schedules.one_cycle",
    "linear_schedule": "schedules.linear",
    "piecewise_constant_schedule": "schedules.piecewise_constant",
    "piecewise_interpolate_schedule": "schedules.piecewise_linear",
    "polynomial_schedule": "schedules.polynomial",
    "sgdr_schedule": "schedules.cosine_restarts",
    "warmup_constant_schedule": "schedules.join",
    "warmup_cosine_decay_schedule": "schedules.warmup_cosine",
    "warmup_exponential_decay_schedule": "schedules.join",
}


def _words(text: str) -> set[str]:
    return set(text.split())


# Not in optfn yet. Until then, optax's go through `from_optax`.
PLANNED = _words("""
    muon scale_by_muon galore scale_by_galore split_real_and_imaginary
""")

# Names without a counterpart, by the reason to use optax's.
LEFT = {
    "a loss": _words("""
        convex_kl_divergence cosine_distance cosine_similarity ctc_loss ctc_loss_with_forward_probs
        generalized_kl_divergence hinge_loss huber_loss kl_divergence l2_loss log_cosh ntxent
        safe_softmax_cross_entropy sigmoid_binary_cross_entropy sigmoid_focal_loss smooth_labels
        softmax_cross_entropy softmax_cross_entropy_with_integer_labels squared_error
    """),
    "linear algebra": _words("matrix_inverse_pth_root nnls power_iteration"),
    "a helper of optax's implementations": _words("""
        bias_correction init_empty_state multi_normal safe_increment safe_int32_increment
        safe_root_mean_squares scale_gradient stateless stateless_with_tree_map tree_map_params
        update_infinity_moment update_moment update_moment_per_elem_norm
    """),
    # A target network is a separate tree; an average beside a run is `ema_of_params`.
    "part of the training loop": _words("incremental_update periodic_update"),
    "smoothing, a task for the log": _words("measure_with_ema"),
    "superseded in optax by optimistic_adam_v2": _words("optimistic_adam"),
    "a marker in optax's states": _words("MaskedNode"),
}


# Arguments that only one of the two libraries has, and what optfn does.
OTHER_ARGUMENTS = {
    "scale_by_lion": ("mode smooth_beta", "the sign; other functions are other algorithms"),
    "nadam": ("nesterov", "always; without it this is `adam`"),
    "nadamw": ("nesterov", "always; without it this is `adamw`"),
    "scale_by_factored_rms": ("decay_rate_fn", "`decay_rate` may be a schedule"),
    "sophia": (
        "hessian_diagonal_fn verbose print_win_rate_every_n_steps",
        "the estimator is a transform; nothing is printed",
    ),
    "hutchinson_estimator_diag_hessian": ("random_seed", "a number, not a key"),
    "noisy_sgd": ("key seed", "`seed`, a number that can be swept"),
    "add_noise": ("key seed", "`seed`, a number that can be swept"),
    "schedule_free_sgd": ("keep_average", "for `b1=0`, which is NaN in optax"),
    "schedule_free_adamw": ("keep_average", "for `b1=0`, which is NaN in optax"),
    "reduce_on_plateau": ("direction", '`"max"` to maximize; optax\'s is for losses'),
    "lbfgs": ("linesearch", "optfn's own stage, with `increase_factor=4`"),
    "scale_by_zoom_linesearch": ("verbose", "nothing is printed; the state says why it failed"),
    "scale_by_backtracking_linesearch": ("verbose", "nothing is printed"),
}

REQUIRED = inspect.Parameter.empty

# Defaults that differ: optfn's, and why.
OTHER_DEFAULTS = {
    ("scale_by_learning_rate", "learning_rate"): (REQUIRED, "optax's None means ascent"),
    ("adadelta", "learning_rate"): (1.0, "as in torch; optax's None means ascent"),
    ("adopt", "clip_value_fn"): (None, "means optax's function, t^(1/4)"),
    ("scale_by_adopt", "clip_value_fn"): (None, "means optax's function, t^(1/4)"),
}


def names() -> list[str]:
    """The public functions and classes of optax and its contrib, but no states or type aliases."""
    found = {}
    for module in (optax.contrib, optax):
        found |= {k: v for k, v in vars(module).items() if not k.startswith("_")}
    return sorted(k for k, v in found.items() if not inspect.ismodule(v) and not _is_type(k, v))


def _is_type(name: str, value: object) -> bool:
    written_out = ("GradientTransformation", "GradientTransformationExtraArgs", "Schedule")
    if name in (*written_out, "MultiSteps", "MaskedNode"):
        return False
    return name[0].isupper() or not callable(value)


def place(name: str) -> str:
    """The counterpart of a name, as a cell of the table."""
    if name in ELSEWHERE:
        return f"`{ELSEWHERE[name]}`"
    if hasattr(optfn, name):
        return "the same"
    if name in PLANNED:
        return "planned"
    reasons = [reason for reason, those in LEFT.items() if name in those]
    if reasons:
        return f"optax's: {reasons[0]}"
    raise KeyError(f"optax's {name} has no place in docs/optax_names.py.")
