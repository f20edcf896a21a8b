"""Models that make images: adversarial ones, and those that remove noise."""

from typing import Any

from optfn import schedules
from optfn.compose.chain import chain
from optfn.compose.param_averages import ema_of_params
from optfn.core.paths import by_path
from optfn.optimizers.elementwise.adam import adam
from optfn.transforms.clip import clip_by_global_norm


def gan(
    generator_rate: Any = 1e-4,
    discriminator_rate: Any = 4e-4,
    *,
    b1: Any = 0.0,
    b2: Any = 0.9,
    generator: str = "generator/**",
    discriminator: str = "discriminator/**",
) -> chain:
    """Adam for two players that train each other: no momentum, and a rate for each.

    It is for players that take one step each at a time. The faster discriminator stays near its
    best answer to the generator, and momentum, which lets the two circle each other, is off.

        params = {"generator": ..., "discriminator": ...}
        grads = {"generator": of its own loss, "discriminator": of its own loss}

    Args:
        generator_rate: a number or a schedule.
        discriminator_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        generator, discriminator: patterns of the paths of their params, as in `by_path`.

    Raises:
        ValueError: at `init`, if a pattern matches no leaf, or a leaf no pattern.

    Source: Heusel et al. 2017 (two time scales); Zhang et al. 2019 (SAGAN): rates and betas; Brock
    et al. 2019 (BigGAN) for rates of half as much.
    """
    rates = by_path({generator: generator_rate, discriminator: discriminator_rate})
    return adam(rates, b1, b2)


def diffusion(
    learning_rate: Any = 2e-4,
    *,
    warmup_steps: Any = 5000,
    ema_decay: Any = 0.9999,
) -> ema_of_params:
    """Adam at a constant rate, and a long average of the params to draw samples with.

    The noise in the loss moves the params at the end as much as at the start, and samples show it;
    `evaluation_params(tx, state, params)` are the averaged ones. The average forgets the first
    params soon, since its decay grows to `ema_decay` as (1 + t) / (10 + t).

    Args:
        learning_rate: a number, from the end of the warm-up on: 2e-4 for images of 32 pixels, 1e-4
            for latents, 2e-5 for 256 pixels.
        warmup_steps: the number of updates up to it.
        ema_decay: the share of the average that is kept; 0.999 for runs of ten thousand updates.

    Source: Ho et al. 2020 (DDPM), paper and code: rate, warm-up, clip, average; TensorFlow's
    ExponentialMovingAverage for the growth of the decay.
    """
    rate = schedules.warmup_constant(learning_rate, warmup_steps)
    return ema_of_params(
        chain(clip_by_global_norm(1.0), adam(rate)), schedules.ema_warmup(ema_decay)
    )
