"""Every algorithm with its options, as optfn, the oracle and optax write it, and problems for them.

A `Case` is one algorithm with one choice of options. `CASES` are optimizers, whose oracle gives
params; `STAGES` are stages, whose oracle gives updates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
import oracles

import optfn
from optfn import schedules

STEPS = 100
RATE = 1e-3
# Of those that find their rate.
DEFAULT_RATES = dict.fromkeys(
    ("dog", "dowg", "prodigy", "dadapt_adamw", "cocob", "polyak_sgd", "momo"), 1.0
) | {"momo_adam": 1e-2, "schedule_free_sgd": 1.0, "schedule_free_adamw": 0.0025}
MOST = "max_learning_rate"


@dataclass(frozen=True, eq=False)
class Written:
    """One argument in the words of each: a schedule is an array of its values for an oracle."""

    here: Any
    oracle: Any
    optax: Any


@dataclass(frozen=True, eq=False)
class Case:
    """An optimizer: its name, which the three share, and its options."""

    algorithm: str
    options: dict = field(default_factory=dict)
    learning_rate: Any = RATE
    # The updates grow with the gradients, and so do their roundings.
    linear: bool = False
    # After a single gradient the centred and debiased second moment is 0, up to rounding, which is
    # all that is left of it. After a zero and a gradient it is no such difference.
    first_step_zero: bool = False
    # optax takes squares, maxima or signs of complex numbers here that are none.
    optax_real: bool = False
    # How many times further off optax's rounding may be, with the reason where it is not 1.
    optax_slack: float = 1.0
    # The same of the oracle's.
    oracle_slack: float = 1.0
    # optax's updates are differences of params, and rounded as these are.
    differences: bool = False
    # A NaN in one entry is seen in all of its leaf, whose norm it enters.
    layerwise: bool = False
    # A number of the whole tree: to the oracle all leaves are one vector.
    treewise: bool = False
    # The largest gradients to try.
    largest: float = 1e25
    # What `update` takes beside the gradients, at every step.
    extra_args: dict = field(default_factory=dict)
    # The name of the argument that is the rate.
    rate_name: str = "learning_rate"

    def __repr__(self) -> str:
        """The name of a test."""
        words = [name if value is True else f"{name}={value}" for name, value in self._labels()]
        return " ".join([self.algorithm, *words])

    def _labels(self):
        options = {self.rate_name: self.learning_rate, **self.options}
        for name, value in options.items():
            if name in ("hessian_diagonal_fn", "linesearch"):
                continue
            if isinstance(value, Written):
                yield name, type(value.here).__name__
            elif (name, value) != (self.rate_name, DEFAULT_RATES.get(self.algorithm, RATE)):
                yield name, value

    def here(self) -> optfn.Transform:
        return getattr(optfn, self.algorithm)(**self._arguments("here"))

    def there(self) -> optax.GradientTransformation:
        peer = OPTAX.get(self.algorithm) or in_optax(self.algorithm)
        return peer(**self._arguments("optax"))

    def problem(self, largest: float = np.inf) -> tuple[dict, dict]:
        """`problem` with gradients up to the case's or this size.

        The real leaves are one where the rule is about single entries, which then are independent
        of each other in it as in leaves of their own: that program is of half the size.
        """
        params, grads = problem(min(self.largest, largest), first_step_zero=self.first_step_zero)
        if self.layerwise or self.treewise or self.extra_args or "mask" in self.options:
            return params, grads
        return in_one_leaf(params), in_one_leaf(grads)

    def oracle(self, params: dict, grads: dict) -> dict:
        """The params after each step."""
        arguments = self._arguments("oracle")
        rate, mask = arguments.pop(self.rate_name), arguments.pop("mask", None)
        arguments.pop("hessian_diagonal_fn", None)
        path = getattr(oracles, self.algorithm)
        if "value" in self.extra_args:
            arguments["values"] = self.extra_args["value"]
        hessians = self.extra_args.get("hessian_diag")
        if self.treewise:
            ends = np.cumsum([x.size for x in params.values()])
            together = path(
                np.concatenate(list(params.values())),
                np.concatenate(list(grads.values()), axis=1),
                rate,
                **arguments,
            )
            found = zip(params, np.split(together, ends[:-1], axis=1), strict=True)
            return {k: x if np.iscomplexobj(params[k]) else x.real for k, x in found}

        def decay(name):
            return {"weight_decay": 0.0} if mask and not mask[name] else {}

        def own(name):
            curvature = {} if hessians is None else {"hessians": hessians[name]}
            return arguments | decay(name) | curvature

        return {name: path(params[name], grads[name], rate, **own(name)) for name in params}

    def _arguments(self, who: str) -> dict:
        options = {self.rate_name: self.learning_rate, **self.options}
        return {k: getattr(v, who) if isinstance(v, Written) else v for k, v in options.items()}


def in_optax(name: str) -> Any:
    """optax's function or class of that name, in its main part or its contrib, or None."""
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def averaged_momentum(learning_rate, b1=0.9, bias_correction=False):
    """The lecture's momentum, which optax has in two pieces."""
    return optax.chain(
        optax.ema(b1, debias=bias_correction), optax.scale_by_learning_rate(learning_rate)
    )


def noiseless_sgd(learning_rate, eta, seed):
    return optax.noisy_sgd(learning_rate, eta, key=seed)


OPTAX = {"momentum": averaged_momentum, "noisy_sgd": noiseless_sgd}

RISING_FALLING = Written(
    schedules.warmup_cosine(RATE, 10, 80, init_value=1e-4, end_value=1e-5),
    np.array(
        [oracles.schedule_warmup_cosine(t, RATE, 10, 80, 1e-4, 1e-5) for t in range(STEPS)],
    ),
    optax.warmup_cosine_decay_schedule(1e-4, RATE, 10, 80, 1e-5),
)
FADING = Written(
    schedules.linear(0.5, 0.1, 60),
    np.array([oracles.schedule_linear(t, 0.5, 0.1, 60) for t in range(STEPS)]),
    optax.linear_schedule(0.5, 0.1, 60),
)
LOSSES = {"value": np.random.default_rng(5).uniform(0, 3, STEPS)}
MASK = dict.fromkeys(("ordinary", "tiny"), True) | dict.fromkeys(
    ("mixed", "huge", "complex"), False
)

HESSIANS = {
    "hessian_diag": {
        name: np.random.default_rng(6).normal(1, 2, size=(STEPS, 4))
        for name in ("ordinary", "tiny", "huge", "mixed", "complex")
    }
}
GIVEN = Written(
    optfn.given_hessian_diagonal(),
    None,
    optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params, hessian_diag: (hessian_diag, state)
    ),
)

CASES = [
    *(
        Case("sgd", options, rate, linear=True)
        for options, rate in (
            ({}, RATE),
            ({}, RISING_FALLING),
            ({"momentum": 0.9}, RATE),
            ({"momentum": 0.9, "nesterov": True}, RATE),
            ({"momentum": 0.9}, RISING_FALLING),
        )
    ),
    Case("momentum", linear=True),
    Case("momentum", {"b1": 0.8, "bias_correction": True}, linear=True),
    Case("rmsprop"),
    Case("rmsprop", {"eps_in_sqrt": False}),
    Case("rmsprop", {"bias_correction": True}),
    Case("rmsprop", {"eps_in_sqrt": False, "bias_correction": True}),
    *(
        Case(
            "rmsprop",
            {
                "centered": True,
                "eps": 1e-3,
                "eps_in_sqrt": eps_in_sqrt,
                "bias_correction": bias_correction,
            },
            first_step_zero=bias_correction,
        )
        for eps_in_sqrt in (True, False)
        for bias_correction in (True, False)
    ),
    Case("rmsprop", {"initial_scale": 1.0}),
    Case("rmsprop", {"decay": 0.99, "momentum": 0.9}),
    Case("rmsprop", {"momentum": 0.9, "nesterov": True}, RISING_FALLING),
    Case("rmsprop", {"centered": True, "eps": 1e-3, "momentum": 0.9}),
    Case("adagrad"),
    Case("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    Case("adagrad", learning_rate=RISING_FALLING),
    Case("adam"),
    Case("adam", {"b1": 0.0, "b2": 0.9}),
    Case("adam", {"eps_root": 1e-6}),
    Case("adam", {"nesterov": True}),
    Case("adam", learning_rate=RISING_FALLING),
    Case("adamw"),
    Case("adamw", {"weight_decay": 0.5, "mask": Written(MASK, MASK, MASK)}),
    Case("adamw", {"weight_decay": FADING}, RISING_FALLING),
    Case("adamw", {"weight_decay": 0.5, "nesterov": True}),
    Case("amsgrad"),
    *(
        Case("amsgrad", {"b2": 0.95, "bias_correction_mu": mu, "bias_correction_nu": nu})
        for mu in (True, False)
        for nu in (True, False)
    ),
    Case("lion"),
    Case("lion", {"b1": 0.95, "b2": 0.98, "mask": Written(MASK, MASK, MASK)}),
    Case("lion", {"weight_decay": FADING}, RISING_FALLING),
    Case("nadam"),
    Case("nadamw", {"weight_decay": 0.5, "mask": Written(MASK, MASK, MASK)}),
    Case("adabelief"),
    Case("adabelief", {"b2": 0.9, "nesterov": True}),
    Case("adamax", optax_real=True),
    Case("adamax", {"b1": 0.5, "b2": 0.9}, RISING_FALLING, optax_real=True),
    Case("adamaxw", {"weight_decay": 0.5}, optax_real=True),
    Case("adan"),
    Case("adan", {"b2": 0.5, "weight_decay": 0.5, "mask": Written(MASK, MASK, MASK)}),
    # In float32 optax's rho is a difference of numbers of size 2 / (1 - b2).
    Case("radam", optax_slack=16),
    Case("radam", {"b2": 0.9, "nesterov": True}),
    Case("radam", {"b2": 0.99, "threshold": 8.0}, RISING_FALLING),
    Case("yogi", optax_real=True),
    Case("yogi", {"b2": 0.9, "eps": 1e-8}, optax_real=True),
    Case("adadelta", optax_real=True),
    Case("adadelta", {"rho": 0.5, "weight_decay": 0.5}, optax_real=True),
    Case("rprop", optax_real=True),
    Case("rprop", {"eta_minus": 0.2, "eta_plus": 2.0, "max_step_size": 0.01}, optax_real=True),
    Case("sign_sgd"),
    Case("sign_sgd", learning_rate=RISING_FALLING),
    Case("signum"),
    Case("signum", {"beta": 0.5}),
    Case("optimistic_gradient_descent", linear=True),
    Case("optimistic_gradient_descent", {"alpha": 0.5, "beta": 2.0}, RISING_FALLING, linear=True),
    Case("optimistic_adam_v2"),
    Case("optimistic_adam_v2", {"alpha": 0.5, "beta": 2.0, "nesterov": False}),
    Case("grams"),
    Case("grams", {"b2": 0.9, "weight_decay": 0.5}, RISING_FALLING),
    Case("laprop"),
    Case("laprop", {"b1": 0.95, "b2": 0.5, "weight_decay": 0.5}),
    Case("lars", layerwise=True),
    Case("lars", {"weight_decay": 0.5, "nesterov": True}, RISING_FALLING, layerwise=True),
    Case("lars", {"momentum": 0.0, "trust_coefficient": 1.0, "eps": 1e-3}, layerwise=True),
    Case("lamb", layerwise=True),
    Case("lamb", {"weight_decay": 0.5}, RISING_FALLING, layerwise=True),
    Case("fromage", layerwise=True),
    # optax's 1 / sqrt(1 + rate^2) - 1 is a small difference.
    Case("fromage", {"min_norm": 0.1}, RISING_FALLING, layerwise=True, optax_slack=4),
    Case("novograd", layerwise=True),
    Case("novograd", {"b2": 0.9, "weight_decay": 0.5}, RISING_FALLING, layerwise=True),
    Case("sm3", optax_real=True),
    Case("sm3", {"momentum": 0.5}, optax_real=True),
    # A gradient does not shorten its own step, so that a step may be of any size.
    Case("acprop", optax_slack=8),
    Case("acprop", {"b2": 0.9, "weight_decay": 0.5}, RISING_FALLING),
    Case("ademamix"),
    Case("ademamix", {"b3": 0.99, "alpha": FADING, "weight_decay": 0.5}),
    Case("simplified_ademamix", optax_real=True),
    Case("simplified_ademamix", {"alpha": 2.0, "weight_decay": 0.5}, optax_real=True),
    Case("adopt", optax_real=True),
    Case("adopt", {"b2": 0.9, "nesterov": True}, RISING_FALLING, optax_real=True),
    Case("adopt", {"b2": 0.9, "use_clipping": False}),
    Case("madgrad", optax_real=True, differences=True),
    Case(
        "madgrad",
        {"momentum": 0.5, "weight_decay": 0.5},
        RISING_FALLING,
        optax_real=True,
        differences=True,
    ),
    Case("qhm", linear=True),
    Case("qhm", {"b1": 0.9, "v1": 0.5}, RISING_FALLING, linear=True),
    Case("qhadam"),
    Case("qhadam", {"v1": 0.5, "v2": 0.5}),
    Case("adafactor", layerwise=True, optax_real=True),
    Case(
        "adafactor",
        {"momentum": 0.9, "weight_decay_rate": 1e-3, "multiply_by_parameter_scale": False},
        RISING_FALLING,
        layerwise=True,
        optax_real=True,
    ),
    Case("noisy_sgd", {"eta": 0.0, "seed": 1}, linear=True),
    Case("dog", learning_rate=1.0, treewise=True),
    Case("dog", {"init_step": ("distance", 0.1)}, FADING, treewise=True),
    Case(
        "dog",
        {"init_step": ("learning_rate", 0.1), "weight_decay": 0.5},
        1.0,
        linear=True,
        treewise=True,
    ),
    Case("dowg", learning_rate=1.0, treewise=True),
    Case("dowg", {"init_estim_sq_dist": 0.1, "weight_decay": 0.5}, FADING, treewise=True),
    Case("prodigy", learning_rate=1.0, treewise=True, optax_real=True),
    Case(
        "prodigy",
        {"betas": (0.8, 0.99), "beta3": 0.9, "estim_lr_coef": 2.0, "weight_decay": 0.5},
        FADING,
        treewise=True,
        optax_real=True,
    ),
    Case("prodigy", {"safeguard_warmup": True}, RISING_FALLING, treewise=True, optax_real=True),
    Case("dadapt_adamw", learning_rate=1.0, treewise=True, optax_real=True),
    Case(
        "dadapt_adamw",
        {"betas": (0.8, 0.99), "weight_decay": 0.5},
        FADING,
        treewise=True,
        optax_real=True,
    ),
    Case("cocob", learning_rate=1.0, optax_real=True, differences=True),
    Case(
        *("cocob", {"alpha": 10.0, "weight_decay": 0.5}, FADING),
        optax_real=True,
        differences=True,
        optax_slack=4,  # of the sums that are multiplied
    ),
    Case("schedule_free_sgd", linear=True, differences=True),
    Case("schedule_free_sgd", {"b1": 0.5, "weight_decay": 0.5}, linear=True, differences=True),
    Case("schedule_free_adamw", learning_rate=0.0025, differences=True),
    Case(
        "schedule_free_adamw",
        {"b1": 0.5, "b2": 0.9, "weight_decay": 0.5, "weight_lr_power": 0.0},
        differences=True,
    ),
    *(
        Case("polyak_sgd", options, 1.0, True, treewise=True, extra_args=LOSSES, rate_name=MOST)
        for options in ({}, {"f_min": 1.0, "eps": 0.1}, {"f_min": 1.0, "variant": "sps+"})
    ),
    Case("stable_adamw", layerwise=True),
    Case("stable_adamw", {"clip_threshold": 0.5, "weight_decay": 0.5}, FADING, layerwise=True),
    Case("adam_mini", layerwise=True),
    Case("adam_mini", {"b2": 0.9, "weight_decay": 0.5}, RISING_FALLING, layerwise=True),
    *(
        Case("sophia", options | {"hessian_diagonal_fn": GIVEN}, extra_args=HESSIANS, **more)
        for options, more in (
            ({}, {"optax_real": True}),
            (
                {"gamma": 1.0, "b2": 0.9, "update_interval": 3, "weight_decay": 0.5},
                {"optax_real": True},
            ),
        )
    ),
    # Steps and changes of random gradients are all but orthogonal, and their products cancel.
    *(
        Case(
            *("lbfgs", options | {"linesearch": None}, rate),
            oracle_slack=16,
            treewise=True,
            largest=1e3,
        )
        for options, rate in (
            ({}, RATE),
            ({"memory_size": 3, "scale_init_precond": False}, RISING_FALLING),
        )
    ),
    # The rate is a small difference of losses and slopes.
    *(
        Case(
            *(algorithm, options, rate),
            optax_real=True,
            optax_slack=32,
            treewise=True,
            largest=1e3,
            extra_args=LOSSES,
        )
        for algorithm in ("momo", "momo_adam")
        for options, rate in (
            ({}, DEFAULT_RATES[algorithm]),
            ({"weight_decay": 0.5, "lower_bound": 0.5}, FADING),
            ({"weight_decay": 0.5, "adapt_lower_bound": True, "lower_bound": -1.0}, FADING),
        )
    ),
]


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage, what NumPy makes of the gradients of all steps, and optax's stage."""

    name: str
    here: Callable[[], optfn.Transform]
    oracle: Callable[[dict], dict]
    there: Callable[[], optax.GradientTransformation]

    def __repr__(self) -> str:
        return self.name


def on_each(function: Callable) -> Callable:
    """A function of one leaf as one of a dict of them."""
    return lambda grads: {name: function(g) for name, g in grads.items()}


def clipped(g, limit):
    if np.iscomplexobj(g):
        return clipped(g.real, limit) + 1j * clipped(g.imag, limit)
    return np.clip(g, -limit, limit)


def clipped_by_norm(grads, limits):
    """Limits per step."""
    norms = np.sqrt(sum(np.sum(abs(g) ** 2, axis=1) for g in grads.values()))
    shares = np.minimum(1, np.divide(limits, norms, out=np.ones(STEPS), where=norms > 0))
    return {name: g * shares[:, None] for name, g in grads.items()}


STAGES = [
    Stage(
        "trace",
        lambda: optfn.trace(0.9),
        on_each(lambda g: oracles.trace(g, 0.9)),
        lambda: optax.trace(0.9),
    ),
    Stage(
        "trace nesterov",
        lambda: optfn.trace(0.9, nesterov=True),
        on_each(lambda g: oracles.trace(g, 0.9, nesterov=True)),
        lambda: optax.trace(0.9, nesterov=True),
    ),
    Stage(
        "ema",
        lambda: optfn.ema(0.9),
        on_each(lambda g: oracles.ema(g, 0.9)),
        lambda: optax.ema(0.9),
    ),
    Stage(
        "ema biased",
        lambda: optfn.ema(0.9, debias=False),
        on_each(lambda g: oracles.ema(g, 0.9, debias=False)),
        lambda: optax.ema(0.9, debias=False),
    ),
    Stage(
        "clip",
        lambda: optfn.clip(0.5),
        on_each(lambda g: clipped(g, 0.5)),
        lambda: optax.clip(0.5),
    ),
    Stage(
        "clip_by_global_norm",
        lambda: optfn.clip_by_global_norm(1e10),
        lambda grads: clipped_by_norm(grads, 1e10),
        lambda: optax.clip_by_global_norm(1e10),
    ),
    Stage(
        "clip_by_global_norm low",
        lambda: optfn.clip_by_global_norm(1.0),
        lambda grads: clipped_by_norm(grads, 1.0),
        lambda: optax.clip_by_global_norm(1.0),
    ),
    Stage(
        "clip_by_global_norm scheduled",
        lambda: optfn.clip_by_global_norm(FADING.here),
        lambda grads: clipped_by_norm(grads, FADING.oracle),
        lambda: optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=FADING.optax),
    ),
    Stage(
        "scale",
        lambda: optfn.scale(-3.0),
        on_each(lambda g: -3.0 * g),
        lambda: optax.scale(-3.0),
    ),
    Stage(
        "scale_by_schedule",
        lambda: optfn.scale_by_schedule(FADING.here),
        on_each(lambda g: FADING.oracle[:, None] * g),
        lambda: optax.scale_by_schedule(FADING.optax),
    ),
    Stage(
        "scale_by_learning_rate ascending",
        lambda: optfn.scale_by_learning_rate(0.1, flip_sign=False),
        on_each(lambda g: 0.1 * g),
        lambda: optax.scale_by_learning_rate(0.1, flip_sign=False),
    ),
]


def problem(largest: float, *, first_step_zero: bool = False) -> tuple[dict, dict]:
    """Params `{name: [4]}` and the gradients of all steps `{name: [STEPS, 4]}`, in float64.

    Every leaf has an entry that is always zero, single zeros and a step of zeros. The leaves are of
    ordinary size, real and complex, of size 1e-20, of sizes from 1e3 to `largest`, and of all these
    sizes mixed. Params that move by little start at zero, where every digit of it shows.
    """
    rng = np.random.default_rng(0)
    shape = (STEPS, 4)

    def powers_of_ten(low):
        return 10.0 ** rng.uniform(low, np.log10(largest), size=shape)

    grads = {
        "ordinary": rng.normal(size=shape),
        "tiny": rng.normal(size=shape) * 1e-20,
        "huge": rng.normal(size=shape) * powers_of_ten(3),
        "mixed": rng.normal(size=shape) * powers_of_ten(-20),
        "complex": rng.normal(size=shape) + 1j * rng.normal(size=shape),
    }
    for g in grads.values():
        g[rng.uniform(size=shape) < 0.1] = 0
        g[:, 0] = 0
        g[50] = 0
        if first_step_zero:
            g[0] = 0
    params = {
        "ordinary": rng.uniform(-1, 1, size=4),
        "tiny": np.zeros(4),
        "huge": rng.uniform(-1, 1, size=4),
        "mixed": np.zeros(4),
        "complex": rng.uniform(-1, 1, size=4) + 1j * rng.uniform(-1, 1, size=4),
    }
    return params, grads


def in_one_leaf(tree: dict) -> dict:
    """The entries of all real leaves side by side, those of the ordinary one first."""
    real = [x for x in tree.values() if not np.iscomplexobj(x)]
    return {"real": np.concatenate(real, axis=-1), "complex": tree["complex"]}


def run(tx, params, grads, extra_args=None):
    """The params after each step, and the updates, of an optimizer of either library."""

    def step(carry, given):
        params, state = carry
        g, extra = given
        updates, state = tx.update(g, state, params, **extra)
        params = optfn.apply_updates(params, updates)
        return (params, state), (params, updates)

    return jax.lax.scan(step, (params, tx.init(params)), (grads, extra_args or {}))[1]


# Optimizers that are built alike share one compilation.
run_as_data = jax.jit(run)


def run_closed_over(tx, *data):
    """The same with the hyperparameters as constants of the program."""
    return jax.jit(lambda *data: run(tx, *data))(*data)


def assert_within(bound, found, wanted, what):
    """Every entry as close as its bound allows; NaN is close to nothing."""
    error = abs(np.asarray(found) - np.asarray(wanted))
    wrong = ~(error <= bound)
    if wrong.any():
        ratios = error[wrong] / np.broadcast_to(np.maximum(bound, 1e-300), error.shape)[wrong]
        raise AssertionError(f"{what}: {ratios.max():.3g} of the bound in {wrong.sum()} entries")


def centring_error(
    grads: np.ndarray,
    rate: float,
    rounding: float,
    *,
    decay: float = 0.9,
    eps: float = 1e-8,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    momentum: float | None = None,
    centered: bool = True,
) -> np.ndarray:
    """How far rounding may move the steps of centred RMSprop, [T, ...].

    The variance is a difference, nu - |mu|^2, so an error of `rounding * nu`, small against both
    moments, may be large against it. The step g / D lies between its values at the ends of that
    interval, and a momentum sums the errors up as it sums the steps.
    """
    nu = oracles.ema(abs(grads) ** 2, decay, bias_correction)
    variance = np.maximum(nu - abs(oracles.ema(grads, decay, bias_correction)) ** 2, 0)

    def divisor(x):
        return np.sqrt(x + eps) if eps_in_sqrt else np.sqrt(x) + eps

    low = divisor(np.maximum(variance - rounding * nu, 0))
    high = divisor(variance + rounding * nu)
    errors = rate * abs(grads) * (1 / low - 1 / high)
    return errors if momentum is None else oracles.trace(errors, momentum)
