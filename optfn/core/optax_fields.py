"""What optax's states hold under a name that our slots have not.

What is the same under another name is found by optax's name, and asking for anything else is an
error that says where to look: `optax.tree.get(state, name)` gives None where it finds nothing, and
code that was written for optax's state would go on with that.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import optax

COUNT, ITSELF = "count", ""
WRAPPED: dict[str, str | Callable[..., Any]] = {"inner_state": ITSELF}
MOMENTS: dict[str, str | Callable[..., Any]] = {"exp_avg": "mu", "exp_avg_sq": "nu"}
DISTANCES: dict[str, str | Callable[..., Any]] = {
    "init_params": "start",
    "max_dist": "max_distance",
}
SKIPS: dict[str, str | Callable[..., Any]] = {
    "notfinite_count": "consecutive",
    "total_notfinite": "total",
    "inner_state": "inner",
    "last_finite": lambda slots: slots.consecutive == 0,
}

# By the name of a stage: optax's field, and the same in its slots, or the count of the state.
SAME: dict[str, dict[str, str | Callable[..., Any]]] = {
    "accumulate": {
        "mini_step": "micro_step",
        "gradient_step": "inner.count",
        "inner_opt_state": "inner",
    },
    "apply_if_finite": SKIPS,
    "conditionally_mask": WRAPPED,
    "conditionally_transform": WRAPPED,
    "freeze": WRAPPED,
    "lookahead": {"fast_state": "fast"},
    "masked": WRAPPED,
    "mechanize": {
        "r": "reward",
        "m": "largest",
        "s": "factors",
        "v": lambda slots: slots.spread**2,
        "x0": "start",
        "base_optimizer_state": "inner",
    },
    "scale_by_adan": {"t": COUNT},
    "scale_by_ademamix": {"count_m2": COUNT},
    "scale_by_cocob": {"init_particles": "start"},
    "scale_by_dadapt_adamw": MOMENTS,
    "scale_by_distance_over_gradients": DISTANCES,
    "scale_by_dog": DISTANCES,
    "scale_by_dowg": {"init_params": "start"},
    "scale_by_galore": {"projector": "basis"},
    "scale_by_lbfgs": {"updates": "gradient"},
    "scale_by_momo": {"exp_avg": "mu"},
    "scale_by_momo_adam": MOMENTS,
    "scale_by_prodigy": {**MOMENTS, "params0": "start"},
    "scale_by_simplified_ademamix": {"t": COUNT},
    "schedule_free": {
        "b1": "share",
        "weight_sum": "weight",
        "max_lr": "largest_rate",
        "base_optimizer_state": "inner",
    },
    "skip_nonfinite": SKIPS,
}

NUMERATORS = {"numerator_weighted": "numerator", "estim_lr": "distance"}
MODELS = {"barf": "value", "gamma": "along", "lb": "lower_bound"}
NORMS = {
    "is_init_step": f"{COUNT} == 0",
    "estim_sq_dist": "max_distance",
    "sum_sq_norm_grads": "gradient_norm",
    "weighted_sq_norm_grads": "gradient_norm",
    "grad_sum_of_squares": "gradient_norm",
}
SEARCHES = {"decrease_error": "failed", "curvature_error": "failed"}

# By the name of a stage: optax's field, and what stands in its place.
ELSEWHERE: dict[str, dict[str, str]] = {
    "accumulate": {"acc_grads": "sum, not yet divided by weight", "skip_state": "skipped"},
    "ema": {"mu": "ema", "ns_coeffs": 'optfn.hyperparameters(tx, state)["coefficients"]'},
    "hutchinson_estimator_diag_hessian": {"key": "the hyperparameter seed"},
    "lookahead": {"steps_since_sync": f"{COUNT} % sync_period"},
    "monitor": {"measurement": "optfn.metrics(tx, state)"},
    "partition": {"inner_states": "the slots of each group, by its label"},
    "scale_by_backtracking_linesearch": SEARCHES,
    "scale_by_dadapt_adamw": NUMERATORS,
    "scale_by_distance_over_gradients": NORMS,
    "scale_by_dog": NORMS,
    "scale_by_dowg": NORMS,
    "scale_by_galore": {"base_optimizer_state": "inner, where the axis of the rank comes first"},
    "scale_by_lbfgs": {
        "diff_params_memory": "steps",
        "diff_updates_memory": "changes",
        "weights_memory": "inverse",
    },
    "scale_by_momo": MODELS,
    "scale_by_momo_adam": MODELS,
    "scale_by_optimistic_gradient": {"is_initial_step": f"{COUNT} == 0"},
    "scale_by_prodigy": NUMERATORS,
    "scale_by_sophia": {"hessian_fn_state": "estimator", "key": "the hyperparameter seed"},
    "scale_by_zoom_linesearch": SEARCHES,
    "schedule_free": {"step_count": COUNT},
}

# What any state of optax's may have, and what does its work here.
OF_ANY = {
    "hyperparams": "optfn.hyperparameters(tx, state), changed by optfn.replace(tx, ...)",
    "rng_key": "the hyperparameter seed",
}


def same_as(name: str, state: Any) -> list[Any]:
    """What optax's state of one of these stages calls `name`, read from ours, for each stage.

    Stages inside of others count where no outer one has it.
    """
    found = _stages_with(SAME, name, state.slots)
    outer = [(stage, slots) for stage, slots in found if state.slots.get(stage) is slots]
    return [_read(SAME[stage][name], slots, state) for stage, slots in outer or found]


def _read(place: str | Callable[..., Any], slots: Any, state: Any) -> Any:
    if callable(place):
        return place(slots)
    if place == COUNT:
        return state.count
    held = attrgetter(place)(slots) if place else slots
    # The named slots of an inner transform, in the form that its own state has.
    is_named = place in ("inner", ITSELF) and isinstance(held, dict)
    return state._replace(slots=held) if is_named else held


def place_of(name: str, slots: Any) -> str | None:
    """Where to look for what optax's state of one of these stages calls `name`."""
    return next((ELSEWHERE[stage][name] for stage, _ in _stages_with(ELSEWHERE, name, slots)), None)


def optax_names_of(stage: str, slot: str) -> list[str]:
    """What optax calls a slot of a stage, the same or what stands in its place."""
    tables = (SAME.get(stage, {}), ELSEWHERE.get(stage, {}))
    return [other for table in tables for other, place in table.items() if place == slot]


def _stages_with(
    table: Mapping[str, Mapping[str, Any]], name: str, slots: Any
) -> list[tuple[str, Any]]:
    """The stages among the slots that have the name in the table, if no slot is called so."""
    stages = [stage for stage, others in table.items() if name in others]
    if not stages or _all_called(name, slots):
        return []
    return [(stage, own) for stage in stages for own in _all_called(stage, slots)]


def _all_called(key: str, tree: Any) -> list[Any]:
    return [value for _, value in optax.tree_utils.tree_get_all_with_path(tree, key)]
