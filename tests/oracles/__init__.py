"""Float64 NumPy oracles, written from the papers: the paths the optimizers must reproduce.

An optimizer oracle takes one initial array `p`, real or complex, the gradients `grads` of all
steps, shape [T, *p.shape], and the rate `lr`, one number or one per step [T] (so for a weight
decay). It returns the params after each step, [T, *p.shape], in float64 or complex128.

Steps count from t = 1. The second moment of a complex gradient is |g|^2.

A schedule oracle takes the number of the update, 0 at the first, and returns the rate as a float.
"""

from oracles.adam import (
    acprop as acprop,
)
from oracles.adam import (
    adabelief as adabelief,
)
from oracles.adam import (
    adam as adam,
)
from oracles.adam import (
    adamax as adamax,
)
from oracles.adam import (
    adamaxw as adamaxw,
)
from oracles.adam import (
    adamw as adamw,
)
from oracles.adam import (
    adan as adan,
)
from oracles.adam import (
    ademamix as ademamix,
)
from oracles.adam import (
    adopt as adopt,
)
from oracles.adam import (
    amsgrad as amsgrad,
)
from oracles.adam import (
    average_length as average_length,
)
from oracles.adam import (
    grams as grams,
)
from oracles.adam import (
    laprop as laprop,
)
from oracles.adam import (
    nadam as nadam,
)
from oracles.adam import (
    nadamw as nadamw,
)
from oracles.adam import (
    optimistic_adam_v2 as optimistic_adam_v2,
)
from oracles.adam import (
    qhadam as qhadam,
)
from oracles.adam import (
    radam as radam,
)
from oracles.adam import (
    simplified_ademamix as simplified_ademamix,
)
from oracles.adam import (
    yogi as yogi,
)
from oracles.classics import (
    adadelta as adadelta,
)
from oracles.classics import (
    adagrad as adagrad,
)
from oracles.classics import (
    lion as lion,
)
from oracles.classics import (
    madgrad as madgrad,
)
from oracles.classics import (
    momentum as momentum,
)
from oracles.classics import (
    noisy_sgd as noisy_sgd,
)
from oracles.classics import (
    optimistic_gradient_descent as optimistic_gradient_descent,
)
from oracles.classics import (
    qhm as qhm,
)
from oracles.classics import (
    rmsprop as rmsprop,
)
from oracles.classics import (
    rprop as rprop,
)
from oracles.classics import (
    sgd as sgd,
)
from oracles.classics import (
    sign_sgd as sign_sgd,
)
from oracles.classics import (
    signum as signum,
)
from oracles.classics import (
    sm3 as sm3,
)
from oracles.layers import (
    adafactor as adafactor,
)
from oracles.layers import (
    adam_mini as adam_mini,
)
from oracles.layers import (
    fromage as fromage,
)
from oracles.layers import (
    lamb as lamb,
)
from oracles.layers import (
    lars as lars,
)
from oracles.layers import (
    novograd as novograd,
)
from oracles.layers import (
    sophia as sophia,
)
from oracles.layers import (
    stable_adamw as stable_adamw,
)
from oracles.paths import ema as ema
from oracles.paths import trace as trace
from oracles.quasi_newton import (
    lbfgs as lbfgs,
)
from oracles.quasi_newton import (
    lbfgsb as lbfgsb,
)
from oracles.rate_free import (
    cocob as cocob,
)
from oracles.rate_free import (
    dadapt_adamw as dadapt_adamw,
)
from oracles.rate_free import (
    dog as dog,
)
from oracles.rate_free import (
    dowg as dowg,
)
from oracles.rate_free import (
    momo as momo,
)
from oracles.rate_free import (
    momo_adam as momo_adam,
)
from oracles.rate_free import (
    polyak_sgd as polyak_sgd,
)
from oracles.rate_free import (
    prodigy as prodigy,
)
from oracles.rate_free import (
    schedule_free_adamw as schedule_free_adamw,
)
from oracles.rate_free import (
    schedule_free_sgd as schedule_free_sgd,
)
from oracles.schedules import (
    schedule_constant as schedule_constant,
)
from oracles.schedules import (
    schedule_cool_down as schedule_cool_down,
)
from oracles.schedules import (
    schedule_cosine as schedule_cosine,
)
from oracles.schedules import (
    schedule_cosine_restarts as schedule_cosine_restarts,
)
from oracles.schedules import (
    schedule_ema_power_law as schedule_ema_power_law,
)
from oracles.schedules import (
    schedule_ema_warmup as schedule_ema_warmup,
)
from oracles.schedules import (
    schedule_exponential as schedule_exponential,
)
from oracles.schedules import (
    schedule_inverse_sqrt as schedule_inverse_sqrt,
)
from oracles.schedules import (
    schedule_inverse_time as schedule_inverse_time,
)
from oracles.schedules import (
    schedule_join as schedule_join,
)
from oracles.schedules import (
    schedule_linear as schedule_linear,
)
from oracles.schedules import (
    schedule_linear_half_life as schedule_linear_half_life,
)
from oracles.schedules import (
    schedule_one_cycle as schedule_one_cycle,
)
from oracles.schedules import (
    schedule_per_epoch as schedule_per_epoch,
)
from oracles.schedules import (
    schedule_piecewise_constant as schedule_piecewise_constant,
)
from oracles.schedules import (
    schedule_piecewise_cosine as schedule_piecewise_cosine,
)
from oracles.schedules import (
    schedule_piecewise_linear as schedule_piecewise_linear,
)
from oracles.schedules import (
    schedule_polynomial as schedule_polynomial,
)
from oracles.schedules import (
    schedule_power_cool as schedule_power_cool,
)
from oracles.schedules import (
    schedule_warmup_constant as schedule_warmup_constant,
)
from oracles.schedules import (
    schedule_warmup_cosine as schedule_warmup_cosine,
)
from oracles.schedules import (
    schedule_warmup_linear as schedule_warmup_linear,
)
from oracles.schedules import (
    schedule_wsd as schedule_wsd,
)
