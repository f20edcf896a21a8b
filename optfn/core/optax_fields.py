"""What optax's states hold under a name and ours do not, so that asking for it is an error.

`optax.tree.get(state, name)` gives None where it finds nothing, and code that was written for
optax's state would go on with that.
"""

from typing import Any

import optax

COUNT = "count"
RATE_FINDERS = {
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "numerator_weighted": "numerator",
    "estim_lr": "distance",
    "params0": "start",
}
MODELS = {
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "barf": "value",
    "gamma": "along",
    "lb": "lower_bound",
}
DISTANCES = {
    "is_init_step": f"{COUNT} == 0",
    "init_params": "start",
    "max_dist": "max_distance",
    "estim_sq_dist": "max_distance",
    "sum_sq_norm_grads": "gradient_norm",
    "weighted_sq_norm_grads": "gradient_norm",
    "grad_sum_of_squares": "gradient_norm",
}
SEARCHES = {"decrease_error": "failed", "curvature_error": "failed"}

# By the name of a stage: optax's field, and what stands in its place.
ELSEWHERE: dict[str, dict[str, str]] = {
    "ema": {"mu": "ema", "ns_coeffs": 'optfn.hyperparameters(tx, state)["coefficients"]'},
    "hutchinson_estimator_diag_hessian": {"key": "the hyperparameter seed"},
    "mechanize": {
        "r": "reward",
        "m": "largest",
        "v": "spread",
        "s": "factors",
        "x0": "start",
        "base_optimizer_state": "inner",
    },
    "scale_by_adan": {"t": COUNT},
    "scale_by_ademamix": {"count_m2": COUNT},
    "scale_by_backtracking_linesearch": SEARCHES,
    "scale_by_cocob": {"init_particles": "start"},
    "scale_by_dadapt_adamw": RATE_FINDERS,
    "scale_by_distance_over_gradients": DISTANCES,
    "scale_by_dog": DISTANCES,
    "scale_by_dowg": DISTANCES,
    "partition": {"inner_states": "the slots of each group, by its label"},
    "scale_by_galore": {"base_optimizer_state": "inner", "projector": "basis"},
    "scale_by_lbfgs": {
        "updates": "gradient",
        "diff_params_memory": "steps",
        "diff_updates_memory": "changes",
        "weights_memory": "inverse",
    },
    "scale_by_momo": MODELS,
    "scale_by_momo_adam": MODELS,
    "scale_by_optimistic_gradient": {"is_initial_step": f"{COUNT} == 0"},
    "scale_by_prodigy": RATE_FINDERS,
    "scale_by_simplified_ademamix": {"t": COUNT},
    "scale_by_sophia": {"hessian_fn_state": "estimator", "key": "the hyperparameter seed"},
    "scale_by_zoom_linesearch": SEARCHES,
    "schedule_free": {
        "b1": 'optfn.hyperparameters(tx, state)["b1"]',
        "weight_sum": "weight",
        "max_lr": "largest_rate",
        "step_count": COUNT,
        "base_optimizer_state": "inner",
    },
}


def place_of(name: str, slots: Any) -> str | None:
    """Where to find what optax's state of one of these stages calls `name`, if not by that name."""
    stages = (stage for stage, others in ELSEWHERE.items() if name in others)
    found = next((stage for stage in stages if _holds(slots, stage)), None)
    if found is None or _holds(slots, name):
        return None
    return ELSEWHERE[found][name]


def _holds(tree: Any, key: str) -> bool:
    return bool(optax.tree_utils.tree_get_all_with_path(tree, key))
