"""Every optimizer and stage of the library, once, for the tests that run over all of them."""

import optfn
from optfn import schedules


def decays(path, leaf):
    return leaf.ndim > 1


def not_the_scale(path, leaf):
    return leaf.ndim > 0


def by_shape(path, leaf):
    return "matrix" if leaf.ndim > 1 else "rest"


def is_bias(path, leaf):
    return leaf.ndim == 1


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
    "partition": optfn.partition(
        {"matrix": optfn.adam(0.1), "rest": optfn.sgd(0.05, 0.9)},
        by_shape,
    ),
    "freeze": optfn.freeze(optfn.adam(0.1), is_bias),
}

STAGES = {
    "scale": optfn.scale(2.0),
    "scale_by_learning_rate": optfn.scale_by_learning_rate(2.0, flip_sign=False),
    "scale_by_schedule": optfn.scale_by_schedule(schedules.linear(1.0, 0.5, 10)),
    "trace": optfn.trace(0.9, nesterov=True),
    "ema": optfn.ema(0.9),
    "add_decayed_weights": optfn.add_decayed_weights(0.1),
    "clip": optfn.clip(0.5),
    "clip_by_global_norm": optfn.clip_by_global_norm(1.0),
    "scale_by_rms": optfn.scale_by_rms(),
    "scale_by_stddev": optfn.scale_by_stddev(eps=1e-3),
    "scale_by_rss": optfn.scale_by_rss(),
    "scale_by_adam": optfn.scale_by_adam(eps_root=1e-6),
    "scale_by_amsgrad": optfn.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False),
    "scale_by_lion": optfn.scale_by_lion(),
    "masked in a chain": optfn.chain(
        optfn.scale_by_adam(), optfn.masked(optfn.trace(0.5), decays).named("momentum")
    ),
    "named chain": optfn.chain(
        optfn.chain(optfn.scale_by_rms(), optfn.trace(0.5)).named("inner"), optfn.trace(0.2)
    ),
}
