"""Models that were trained before: all of one, or adapters beside it."""

from collections.abc import Sequence
from typing import Any

from optfn.compose.chain import chain
from optfn.compose.partition import freeze
from optfn.core.numbers_by_path import times
from optfn.core.paths import by_path
from optfn.core.transform import Transform
from optfn.optimizers.elementwise.adam import adamw, scale_by_adam
from optfn.recipes.rates import over_a_run
from optfn.recipes.which_leaves import decays
from optfn.transforms.clip import clip_by_global_norm
from optfn.transforms.scale import scale_by_layer_decay, scale_by_learning_rate


def finetune(
    learning_rate: Any = 5e-5,
    *,
    total_steps: Any,
    layers: Sequence[str | Sequence[str]],
    frozen: int = 0,
    layer_decay: Any = 0.9,
    warmup_steps: Any = None,
    weight_decay: Any = 0.01,
) -> Transform:
    """AdamW for a model that was trained before: a small rate, smaller still far from the head.

        finetune(
            total_steps=1000,
            layers=[("embed/**", "pos_embed"), *(f"layers_{i}/**" for i in range(12)), "head/**"],
            frozen=1,
        )

    The layer next to the head learns at 0.9 of its rate, the one below at 0.81, and so on. The
    first layers may stand still: they get zero updates and hold no state.

    Args:
        learning_rate: of the last layer, the peak, a number.
        total_steps: the number of updates in the run, usually of 3 epochs.
        layers: a pattern of paths for each layer, or several, from the first to the head, as in
            `by_path`. Every leaf must match one.
        frozen: how many of the first layers stand still.
        layer_decay: the rate of a layer over that of the next, a number or a schedule: 0.9 for
            large models, 0.8 for small ones and 0.75 for vision transformers; 1 for the same rate.
        warmup_steps: the number of updates up to the peak, from which the rate falls along a line
            to 0; a tenth of all if None.
        weight_decay: decoupled, times the rate; see `decays` for what decays.

    Raises:
        TypeError: `layers` is no list of patterns.
        ValueError: a pattern stands twice; `frozen` is not from 0 to their number less 1; or
            at `init`, if a pattern matches no leaf, or a leaf no pattern.

    Source: Devlin et al. 2019 (BERT): decay, warm-up, line to 0, eps; Clark et al. 2020 (ELECTRA):
    the rate, and its decay by layer; He et al. 2022 (MAE) for the 0.75.
    """
    groups = _patterns(layers)
    _check_frozen(frozen, len(groups))
    rate = over_a_run("finetune", "linear", learning_rate, total_steps, warmup_steps, warmup=0.1)
    above = {x: len(groups) - 1 - i for i, group in enumerate(groups) for x in group}
    tx = chain(
        clip_by_global_norm(1.0),
        adamw(rate, eps=1e-6, weight_decay=weight_decay, mask=decays),
        scale_by_layer_decay(layer_decay, by_path(above)),
    )
    first = {x: True for group in groups[:frozen] for x in group}
    return freeze(tx, by_path(first, default=False)) if first else tx


def _patterns(layers: Any) -> list[tuple[str, ...]]:
    """The patterns of each layer."""
    is_list = isinstance(layers, Sequence) and not isinstance(layers, str)
    groups = [(x,) if isinstance(x, str) else x for x in layers] if is_list else []
    if not groups or not all(isinstance(group, (tuple, list)) for group in groups):
        raise TypeError(
            "finetune(layers=...) must be a list of patterns from the first layer to the head, "
            f"found {layers!r}."
        )
    patterns = [x for group in groups for x in group]
    if len(set(patterns)) < len(patterns):
        raise ValueError(f"finetune(layers=...): a pattern stands twice in {list(layers)}.")
    return [tuple(group) for group in groups]


def _check_frozen(frozen: Any, layers: int) -> None:
    if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen < layers:
        raise ValueError(
            f"finetune(frozen=...) must be a number of layers from 0 to {layers - 1}, found "
            f"{frozen!r}."
        )


def lora(
    learning_rate: Any = 2e-5,
    *,
    total_steps: Any,
    ratio: Any = 16.0,
    warmup_steps: Any = None,
    a: str = "**/*lora_[aA]/**",
    b: str = "**/*lora_[bB]/**",
) -> freeze:
    """Adam for low-rank adapters alone, with a larger rate for B than for A.

    An adapter adds A B to a kernel, and B starts at zero. With one rate for both, A learns too fast
    or B too slowly in wide models; at a larger rate for B both learn. The rest of the params gets
    zero updates and holds no state. It may also be left out of the params.

    Args:
        learning_rate: of A, the peak, a number. With the default ratio that of B is 3.2e-4, about
            what is usual for both; where `ratio` is 1, take 2e-4.
        total_steps: the number of updates in the run.
        ratio: the rate of B over that of A, a number or a schedule.
        warmup_steps: the number of updates up to the peak, from which the rate falls along a line
            to 0; 3 in a hundred if None.
        a, b: patterns of the paths of A and B, as in `by_path`: by default entries such as
            `lora_a`, `lora_A` and `kernel_lora_a`, as in Flax NNX, PEFT and Qwix.

    Raises:
        ValueError: `total_steps` is below 1, or `warmup_steps` above it; or at `init`, if a pattern
            matches no leaf.

    Source: Hu et al. 2021 (LoRA): the line to 0; Hayou et al. 2024 (LoRA+): the ratio; Dettmers et
    al. 2023 (QLoRA): the clip at 0.3, the warm-up, and no weight decay.
    """
    rate = over_a_run("lora", "linear", learning_rate, total_steps, warmup_steps, warmup=0.03)
    tx = chain(
        clip_by_global_norm(0.3),
        scale_by_adam(),
        scale_by_learning_rate(by_path({b: times(ratio)}, default=rate)),
    )
    return freeze(tx, by_path({a: False, b: False}, default=True))
