"""What to write here for the public names of optax 0.2.8 that optfn has not under the same name.

One source: for the errors about a name that is not here, for those about a schedule that is called
with optax's arguments, and for the tables in docs/optax_table.md.
"""

import inspect
import sys

# Each schedule of optax: an expression of its arguments.
SCHEDULES = {
    "constant_schedule": "optfn.schedules.constant(value)",
    "linear_schedule": (
        "optfn.schedules.linear(init_value, end_value, transition_steps, transition_begin)"
    ),
    "polynomial_schedule": (
        "optfn.schedules.polynomial(init_value, end_value, power, transition_steps, "
        "transition_begin)"
    ),
    "exponential_decay": (
        "optfn.schedules.exponential(init_value, transition_steps, decay_rate, transition_begin, "
        "staircase, end_value)"
    ),
    "cosine_decay_schedule": (
        "optfn.schedules.cosine(init_value, decay_steps, end_value=alpha * init_value, "
        "exponent=exponent)"
    ),
    "warmup_constant_schedule": (
        "optfn.schedules.warmup_constant(peak_value, warmup_steps, init_value=init_value)"
    ),
    "warmup_cosine_decay_schedule": (
        "optfn.schedules.warmup_cosine(peak_value, warmup_steps, total_steps=decay_steps, "
        "init_value=init_value, end_value=end_value, exponent=exponent)"
    ),
    "warmup_exponential_decay_schedule": (
        "optfn.schedules.join([optfn.schedules.linear(init_value, peak_value, warmup_steps), "
        "optfn.schedules.exponential(peak_value, transition_steps, decay_rate, transition_begin, "
        "staircase, end_value)], [warmup_steps])"
    ),
    "cosine_onecycle_schedule": (
        "optfn.schedules.one_cycle(peak_value=peak_value, total_steps=transition_steps, "
        "pct_start=pct_start, div_factor=div_factor, final_div_factor=final_div_factor)"
    ),
    "linear_onecycle_schedule": (
        "optfn.schedules.one_cycle(peak_value=peak_value, total_steps=transition_steps, "
        "pct_start=pct_start, pct_final=pct_final, div_factor=div_factor, "
        'final_div_factor=final_div_factor, anneal="linear")'
    ),
    "piecewise_constant_schedule": (
        "optfn.schedules.piecewise_constant(init_value * numpy.cumprod([1, "
        "*boundaries_and_scales.values()]), [*boundaries_and_scales])"
    ),
    "piecewise_interpolate_schedule": (
        'getattr(optfn.schedules, f"piecewise_{interpolate_type}")(init_value * numpy.cumprod([1, '
        "*boundaries_and_scales.values()]), [*boundaries_and_scales])"
    ),
    "join_schedules": "optfn.schedules.join(schedules, boundaries)",
    "sgdr_schedule": (
        'optfn.schedules.join([optfn.schedules.warmup_cosine(c["peak_value"], c["warmup_steps"], '
        'c["decay_steps"], init_value=c["init_value"], end_value=c.get("end_value", 0.0)) for c in '
        'cosine_kwargs], numpy.cumsum([c["decay_steps"] for c in cosine_kwargs])[:-1])'
    ),
}

_STATE_OF_THE_LOOP = (
    "`optfn.replace(tx, name=value)` before a step, with the optimizer passed to the step as an "
    "argument and the value computed by the loop"
)

_AXES = (
    "`optfn.MatrixAxes(rows=output_axis, columns=reduction_axis)`, as a tree, or by path in "
    "`optfn.matrices({pattern: axes})`; `optfn.muon` and `optfn.galore` take optax's too"
)

# Everything else that has another name or other arguments: the expression, and what differs.
ELSEWHERE = {
    **{name: f"`{expression}`" for name, expression in SCHEDULES.items()},
    "GradientTransformation": "`optfn.Transform`, which is one",
    "GradientTransformationExtraArgs": "`optfn.Transform`, which is one",
    "with_extra_args_support": (
        "nothing to write but `tx`: every `optfn.Transform` takes extra arguments"
    ),
    "identity": "`optfn.chain()`",
    "named_chain": "`optfn.chain(transform.named(name), ...)` for its `args` of pairs",
    "multi_transform": (
        "`optfn.partition(transforms, param_labels)`, without `mask_compatible_extra_args`"
    ),
    "selective_transform": "`optfn.freeze(optimizer, freeze_mask)`",
    "inject_hyperparams": (
        "`optfn.replace(tx, learning_rate=value)`, with the optimizer passed to the jitted step as "
        "an argument: its hyperparameters are leaves, which `optfn.hyperparameters(tx, state)` "
        "reads. Of `inner_factory`, `static_args` and `hyperparam_dtype` nothing remains"
    ),
    "inject_stateful_hyperparams": (
        f"{_STATE_OF_THE_LOOP}. Of `inner_factory`, `static_args` and `hyperparam_dtype` nothing "
        "remains"
    ),
    "WrappedSchedule": "nothing to write: any argument may be an `optfn.Schedule`",
    "StatefulSchedule": _STATE_OF_THE_LOOP,
    "MultiSteps": (
        "`optfn.accumulate(opt, every_k_schedule, use_grad_mean=use_grad_mean, "
        "accumulator_dtype=accumulator_dtype)`, a transform like any other. It always skips "
        "gradients that are not finite and has no other `should_skip_update_fn`"
    ),
    "apply_every": (
        "`optfn.accumulate(optfn.chain(), k, use_grad_mean=False)`, which adds up k updates; "
        "around an optimizer, `optfn.accumulate(tx, k)` steps once with the mean of k gradients"
    ),
    "skip_not_finite": (
        "nothing to write: `optfn.accumulate` skips gradients that are not finite, and around any "
        "other optimizer `optfn.skip_nonfinite(tx)` does. They pass on no `updates`, "
        "`gradient_step` and `params`"
    ),
    "skip_large_updates": (
        "`optfn.skip_spikes(tx)`, around an optimizer, whose limit follows the recent gradients: "
        "no fixed `max_squared_norm`, and no `updates`, `gradient_step` and `params`"
    ),
    "snapshot": (
        "`optfn.monitor(optfn.chain(), {measure_name: lambda g, u, p: measure(u)}, norms=False)`, "
        "for a scalar; read by `optfn.metrics(tx, state)[measure_name]`"
    ),
    "safe_norm": (
        "`jax.numpy.maximum(optfn.global_norm(x), min_norm)`, whose derivative at zero is zero; "
        "other norms, by `ord`, `axis` and `keepdims`, are optax's"
    ),
    "schedule_free_eval_params": "`optfn.evaluation_params(tx, state, params)`",
    "differentially_private_aggregate": (
        "`optfn.private_mean(grads, l2_norm_clip, noise_multiplier, key)`, a function before the "
        "optimizer with a `key` of each step, not one `seed`"
    ),
    "dpsgd": (
        "`optfn.sgd(learning_rate, momentum, nesterov)`, for gradients from "
        "`optfn.private_mean(grads, l2_norm_clip, noise_multiplier, key)` with a key of each step, "
        "not one `seed`"
    ),
    "stateless": (
        "`optfn.from_optax(optax.stateless(f))`; with hyperparameters that are leaves, a subclass "
        "of `optfn.Leafwise` or `optfn.Transform`"
    ),
    "stateless_with_tree_map": (
        "`optfn.from_optax(optax.stateless_with_tree_map(f))`; with hyperparameters that are "
        "leaves, a subclass of `optfn.Leafwise`"
    ),
    "MuonDimensionNumbers": _AXES,
    "GaLoreDimensionNumbers": _AXES,
    "AccumulationType": '`"mean"`, `"sum"` or `"concat"`; `optfn.microbatch` takes optax\'s too',
    "EmptyState": "nothing to write: a stage without state has no entry in `optfn.State`",
    "MaskedNode": "None in a tree",
    "contrib": "`optfn`, whose names are those of optax and of its contrib",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Not in optfn yet.
PLANNED = _words("split_real_and_imaginary")

# Names of optax's that need no counterpart, by what to do about them.
LEFT = {
    "a loss, which works unchanged": _words("""
        losses convex_kl_divergence cosine_distance cosine_similarity ctc_loss
        ctc_loss_with_forward_probs generalized_kl_divergence hinge_loss huber_loss kl_divergence
        l2_loss log_cosh ntxent safe_softmax_cross_entropy sigmoid_binary_cross_entropy
        sigmoid_focal_loss smooth_labels softmax_cross_entropy
        softmax_cross_entropy_with_integer_labels squared_error
    """),
    "of trees, and works unchanged on params and on the states of optfn": _words("""
        tree tree_utils tree_map_params
    """),
    "no part of an optimizer, and works unchanged": _words("""
        assignment experimental perturbations projections second_order
        matrix_inverse_pth_root nnls power_iteration multi_normal scale_gradient
        safe_increment safe_int32_increment safe_root_mean_squares
        reshape_batch_axis micro_grad micro_vmap
    """),
    "a helper for writing optimizers in its way; docs/write_an_optimizer.md shows optfn's": (
        _words("""
            bias_correction init_empty_state unitwise_clip unitwise_norm update_infinity_moment
            update_moment update_moment_per_elem_norm
        """)
    ),
    "a type alias, which works unchanged": _words("""
        ConditionFn MaskOrFn OptState Params ScalarOrSchedule ShouldSkipUpdateFunction
        TransformInitFn TransformUpdateExtraArgsFn TransformUpdateFn
    """),
    "part of the loop, and works unchanged; the average beside a run is `optfn.ema_of_params`": (
        _words("incremental_update periodic_update")
    ),
    "smoothing, a task for the log": _words("measure_with_ema"),
    "superseded by `optfn.optimistic_adam_v2`": _words("optimistic_adam"),
    "for its `microbatch`; `optfn.microbatch` has a mean, a sum and concatenation": (
        _words("Accumulator")
    ),
    "a state; optfn's is an `optfn.State`, whose `slots` are a dict keyed by stage": _words("""
        AdaptiveGradClipState AddDecayedWeightsState AddNoiseState ApplyEvery ApplyIfFiniteState
        COCOBState ClipByGlobalNormState ClipState ConditionallyMaskState
        ConditionallyTransformState DAdaptAdamWState DifferentiallyPrivateAggregateState DoGState
        DoWGState EmaState FactoredState GaLoreState HutchinsonState InjectHyperparamsState
        InjectStatefulHyperparamsState LookaheadParams LookaheadState MadgradState MaskedState
        MechanicState MomoAdamState MomoState MonitorState MultiStepsState MultiTransformState
        MuonState NonNegativeParamsState NormalizeState PartitionState ProdigyState
        ReduceLROnPlateauState SAMState ScaleByAdaDeltaState ScaleByAdamState ScaleByAdanState
        ScaleByAdemamixState ScaleByAmsgradState ScaleByBacktrackingLinesearchState
        ScaleByBeliefState ScaleByLBFGSState ScaleByLionState ScaleByNovogradState
        ScaleByRStdDevState ScaleByRmsState ScaleByRpropState ScaleByRssState ScaleBySM3State
        ScaleByScheduleState ScaleBySimplifiedAdEMAMixState ScaleByTrustRatioState
        ScaleByZoomLinesearchState ScaleState ScheduleFreeState SnapshotState SophiaState
        SplitRealAndImaginaryState TraceState ZeroNansState ZoomLinesearchInfo
    """),
}


def what_to_write(name: str) -> str | None:
    """A sentence on a name of optax's that is not here under its own name; None for any other."""
    if name in ELSEWHERE:
        return f"optax's {name} is here: {ELSEWHERE[name]}."
    if name in PLANNED:
        return f"{name} is not here yet; optax's works here through `optfn.from_optax`."
    for reason, names in LEFT.items():
        if name in names:
            return f"{name} is optax's: {reason}."
    return None


def missing(module: str, name: str) -> AttributeError:
    """The error for a module without that name; for a name of optax's it says what to write."""
    sentence = what_to_write(name)
    text = f"module {module!r} has no attribute {name!r}"
    return AttributeError(
        f"{text}. {sentence}" if sentence else text, name=name, obj=sys.modules.get(module)
    )


# The schedules here for which a call may be meant for one of optax's that is written otherwise.
_MISTAKEN = {
    "piecewise_interpolate_schedule": ("piecewise_linear", "piecewise_cosine"),
    "sgdr_schedule": ("cosine_restarts",),
}


def of_schedule(name: str) -> str:
    """What to write here for the schedules of optax that a call of this one may be meant for."""
    import optax

    sentences = []
    for other, expression in SCHEDULES.items():
        here = expression.partition("(")[0].rpartition(".")[2]
        if name in _MISTAKEN.get(other, (here,)):
            arguments = ", ".join(inspect.signature(getattr(optax, other)).parameters)
            sentences.append(f"optax's {other}({arguments}) is {expression}.")
    return " ".join(sentences)
