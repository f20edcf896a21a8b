"""Random noise in the updates."""

from typing import Any

import jax

from optfn.core.leafwise import Leafwise
from optfn.core.numerics import sqrt
from optfn.core.randomness import seed


class add_noise(Leafwise):
    """Adds Gaussian noise whose variance decays.

        u = g + sqrt(eta / t^gamma) * n        n standard normal

    A complex entry gets half the variance in each part. The same seed gives the same noise.

    Args:
        eta: the variance at the first step, a number or a schedule.
        gamma: the exponent of the decay, a number or a schedule; 0 keeps the variance constant.
        seed: a whole number below 2^24, or a random key; optax's name for it, `key`, is taken too.

    Source: Neelakantan et al. 2015.
    """

    random = True

    eta: Any
    gamma: Any
    seed: Any = seed(also_called="key")

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array, *, key: Any = None
    ) -> tuple[jax.Array, None]:
        stddev = sqrt(self.eta / t**self.gamma)
        return g + stddev * jax.random.normal(key, g.shape, g.dtype), slots
