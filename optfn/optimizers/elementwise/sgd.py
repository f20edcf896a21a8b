"""Gradient descent, plain and with momentum."""

from typing import Any

from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import also_called
from optfn.transforms.momentum import ema, trace
from optfn.transforms.noise import add_noise
from optfn.transforms.scale import scale_by_learning_rate


def sgd(
    learning_rate: Any,
    momentum: Any = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> chain:
    """Stochastic gradient descent, plain or with heavy-ball or Nesterov momentum.

        p <- p - learning_rate * u        u = g,  or u from `trace(momentum, nesterov)`

    Momentum here is a sum of gradients, as in torch: a constant gradient moves the params at
    learning_rate / (1 - momentum). For the average, whose speed is the learning rate, take the
    optimizer `momentum`.

    Args:
        learning_rate: a number or a schedule.
        momentum: decay of the sum, usually 0.9; None keeps no state.
        nesterov: Nesterov's look-ahead; it needs a momentum.
        accumulator_dtype: the dtype in which the sum is stored; see `trace`.

    Raises:
        ValueError: nesterov without momentum.

    Source: Robbins and Monro 1951; Polyak 1964; Sutskever et al. 2013.
    """
    if momentum is None:
        if nesterov:
            raise ValueError("sgd(nesterov=True) needs a momentum, as in momentum=0.9.")
        return chain(scale_by_learning_rate(learning_rate))
    return chain(
        trace(momentum, nesterov, accumulator_dtype), scale_by_learning_rate(learning_rate)
    )


def momentum(learning_rate: Any, b1: Any = 0.9, *, bias_correction: bool = False) -> chain:
    """Gradient descent with momentum as an exponential moving average of the gradient.

        v <- b1 * v + (1 - b1) * g        p <- p - learning_rate * v

    The same path as `sgd(learning_rate * (1 - b1), momentum=b1)`, so a rate keeps its meaning when
    b1 changes.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average, a number or a schedule.
        bias_correction: use v / (1 - b1^t), which makes the first steps as large as later ones.

    Source: Polyak 1964, in the averaged form of Ng's lectures, 2017.
    """
    return chain(ema(b1, debias=bias_correction), scale_by_learning_rate(learning_rate))


@also_called(key="seed")
def noisy_sgd(learning_rate: Any, eta: Any = 0.01, gamma: Any = 0.55, seed: Any = 0) -> chain:
    """Gradient descent with Gaussian noise that fades, which helps very deep networks to start.

        g <- g + sqrt(eta / t^gamma) * n        p <- p - learning_rate * g

    Args:
        learning_rate: a number or a schedule.
        eta: the variance at the first step.
        gamma: how fast the variance fades; 0 keeps it constant.
        seed: the seed of the noise; see `add_noise`.

    Source: Neelakantan et al. 2015.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(learning_rate))
