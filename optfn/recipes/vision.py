"""Classifiers of images, trained from the start."""

from typing import Any

from optfn.compose.chain import chain
from optfn.optimizers.elementwise.adam import adamw
from optfn.optimizers.elementwise.sgd import sgd
from optfn.recipes.rates import over_a_run
from optfn.recipes.which_leaves import decays
from optfn.transforms.clip import clip_by_global_norm
from optfn.transforms.decay import add_decayed_weights


def vit(
    learning_rate: Any = 1e-3,
    *,
    total_steps: Any,
    warmup_steps: Any = None,
    weight_decay: Any = 0.05,
) -> chain:
    """AdamW as vision transformers are trained with it on a million images.

    A clip at norm 1, decay of kernels alone, not of positions and the class token, a warm-up, and a
    cosine to a hundredth of the peak.

    Args:
        learning_rate: the peak, a number, for batches of 1024; in proportion for smaller ones.
        total_steps: the number of updates in the run, 90 to 300 epochs.
        warmup_steps: the number of updates up to the peak; a sixtieth, 5 epochs of 300, if None.
        weight_decay: decoupled, times the rate; see `decays` for what decays. Models larger than
            ViT-B, and fewer images, take more, up to 0.3.

    Raises:
        ValueError: `total_steps` is below 1, or `warmup_steps` above it.

    Source: Touvron et al. 2021 (DeiT): rate, decay, what decays, warm-up, cosine; Dosovitskiy et
    al. 2021 and Beyer et al. 2022: the clip.
    """
    rate = over_a_run(
        "vit", "cosine", learning_rate, total_steps, warmup_steps, warmup=1 / 60, end=0.01
    )
    return chain(clip_by_global_norm(1.0), adamw(rate, weight_decay=weight_decay, mask=decays))


def resnet_sgd(
    learning_rate: Any = 0.1,
    *,
    total_steps: Any,
    warmup_steps: Any = None,
    momentum: Any = 0.9,
    weight_decay: Any = 1e-4,
) -> chain:
    """Nesterov's momentum as convolutional networks with batch norm are trained with it.

    The decay is a penalty in the gradient, as in torch, and leaves biases and the scales and shifts
    of batch norm alone. A warm-up lets the rate be large, and half a cosine takes it to 0.

    Args:
        learning_rate: the peak, a number, for batches of 256; in proportion for others, up to 8192.
        total_steps: the number of updates in the run, usually 90 to 200 epochs.
        warmup_steps: the number of updates up to the peak; an eighteenth, 5 epochs of 90, if None.
        momentum: the decay of the sum of gradients.
        weight_decay: of the penalty; 5e-4 for images as small as those of CIFAR. See `decays` for
            what decays.

    Raises:
        ValueError: `total_steps` is below 1, or `warmup_steps` above it.

    Source: Goyal et al. 2017: Nesterov, rates by batch, warm-up, no decay of batch norm; He et al.
    2019, "Bag of tricks": the cosine, and no decay of biases.
    """
    rate = over_a_run(
        "resnet_sgd", "cosine", learning_rate, total_steps, warmup_steps, warmup=1 / 18
    )
    return chain(
        add_decayed_weights(weight_decay, decays), sgd(rate, momentum=momentum, nesterov=True)
    )
