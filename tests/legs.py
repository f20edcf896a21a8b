"""On which legs each algorithm stands: what the README's table is made of."""

from typing import NamedTuple


class Legs(NamedTuple):
    """The evidence for one optimizer function.

    Attributes:
        stages: the stages it is made of, beside weight decay and learning rate.
        oracle: its function in `oracles.py`, compared in `optimizers/test_oracles.py`.
        optax: whether it follows optax's function of that name, in `optimizers/test_optax.py`.
        golden: its trajectories in `golden/torch.npz`, in `optimizers/test_golden.py`.
        claim: a theorem about it.
        theorem: the test of the theorem, in `optimizers/test_theorems.py`.
    """

    stages: tuple[str, ...]
    oracle: str
    optax: bool
    golden: tuple[str, ...]
    claim: str
    theorem: str


LEGS = {
    "sgd": Legs(
        ("trace",),
        "sgd",
        True,
        ("sgd", "sgd_momentum", "sgd_nesterov"),
        "converges on a quadratic for rates below 2 / curvature, and only for these",
        "test_gradient_descent_is_a_geometric_series",
    ),
    "momentum": Legs(
        ("ema",),
        "momentum",
        False,
        (),
        "is heavy ball at the rate times 1 - b1",
        "test_momentum_is_heavy_ball_at_a_smaller_rate",
    ),
    "rmsprop": Legs(
        ("scale_by_rms", "scale_by_stddev"),
        "rmsprop",
        True,
        ("rmsprop", "rmsprop_centered", "rmsprop_momentum"),
        "corrected, it is Adam with b1 = 0",
        "test_rmsprop_with_correction_is_adam_without_momentum",
    ),
    "adagrad": Legs(
        ("scale_by_rss",),
        "adagrad",
        True,
        (),
        "rates fall as one over the root of time",
        "test_adagrad_s_rates_fall_as_one_over_the_root_of_time",
    ),
    "adam": Legs(
        ("scale_by_adam",),
        "adam",
        True,
        ("adam",),
        "the scale of the gradient does not matter",
        "test_the_scale_of_the_gradient_does_not_matter",
    ),
    "adamw": Legs(
        ("scale_by_adam",),
        "adamw",
        True,
        ("adamw",),
        "without a gradient, weights shrink by 1 - rate * decay",
        "test_decoupled_decay_multiplies_the_weights",
    ),
    "amsgrad": Legs(
        ("scale_by_amsgrad",),
        "amsgrad",
        True,
        (),
        "rates never grow",
        "test_amsgrad_s_rates_never_grow",
    ),
    "lion": Legs(
        ("scale_by_lion",),
        "lion",
        True,
        (),
        "steps are exactly the rate",
        "test_lion_s_steps_are_exactly_the_rate",
    ),
}
