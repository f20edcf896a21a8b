"""Transformers for text, trained from the start."""

from functools import partial
from typing import Any

from optfn.compose.chain import chain
from optfn.compose.partition_matrices import partition_matrices
from optfn.optimizers.elementwise.adam import adamw, scale_by_adam
from optfn.optimizers.matrix.muon import scale_by_muon
from optfn.recipes.rates import over_a_run
from optfn.recipes.which_leaves import decays
from optfn.transforms.clip import clip_by_global_norm
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import scale_by_matrix_shape
from optfn.transforms.scale import scale_by_learning_rate

_rate = partial(over_a_run, warmup=0.01, end=0.1)


def transformer_adamw(
    learning_rate: Any = 6e-4,
    *,
    total_steps: Any,
    warmup_steps: Any = None,
    schedule: str = "cosine",
    weight_decay: Any = 0.1,
) -> chain:
    """AdamW as language models are trained with it.

    A clip of the whole gradient at norm 1, b2 = 0.95, which forgets faster than the default, decay
    of kernels and embeddings alone, and a rate that warms up and falls.

    Args:
        learning_rate: the peak, a number: 6e-4 for 125 million params, 3e-4 for 350 million, 2e-4
            for 1.3 billion; less for more.
        total_steps: the number of updates in the run.
        warmup_steps: the number of updates up to the peak; a hundredth of all if None.
        schedule: "cosine" and "linear" fall to a tenth of the peak. "wsd" keeps the peak until the
            last fifth and falls to 0 by 1 - sqrt, so the run can be extended from there.
        weight_decay: decoupled, times the rate; see `decays` for what decays.

    Raises:
        ValueError: `schedule` is none of these, `total_steps` is below 1, or `warmup_steps`
            above it.

    Source: Brown et al. 2020 (GPT-3): rates, betas, clip, decay, cosine to a tenth; Karpathy 2022
    (nanoGPT): which arrays decay; Biderman et al. 2023 (Pythia): the length of the warm-up;
    Haegele et al. 2024: the cool-down of "wsd".
    """
    rate = _rate("transformer_adamw", schedule, learning_rate, total_steps, warmup_steps)
    return chain(
        clip_by_global_norm(1.0), adamw(rate, b2=0.95, weight_decay=weight_decay, mask=decays)
    )


def transformer_muon(
    learning_rate: Any = 6e-4,
    *,
    total_steps: Any,
    warmup_steps: Any = None,
    schedule: str = "cosine",
    weight_decay: Any = 0.1,
    views: Any = None,
) -> chain:
    """Muon for the matrices and AdamW for the rest, with one rate and one decay for both.

    A step of Muon is scaled to the root mean square of one of AdamW's, so the rate and the decay
    are those of `transformer_adamw`, and there is one of each to tune. It reaches
    AdamW's loss in fewer steps, and holds half the state for the matrices.

    Args:
        learning_rate: the peak, a number; see `transformer_adamw`.
        total_steps: the number of updates in the run.
        warmup_steps: the number of updates up to the peak; a hundredth of all if None.
        schedule: "cosine", "linear" or "wsd"; see `transformer_adamw`.
        weight_decay: decoupled, times the rate; see `decays` for what decays.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
            Embeddings, heads and vectors are none, and attention kernels of three axes must be
            described.

    Raises:
        ValueError: `schedule` is none of these, `total_steps` is below 1, or `warmup_steps`
            above it; or at `init`, if an array of three or more axes is not described by `views`.

    Source: Liu et al. 2025 (Moonlight): the root mean square of 0.2, one rate and one decay; Jordan
    et al. 2024 for Muon; the other numbers as in `transformer_adamw`.
    """
    rate = _rate("transformer_muon", schedule, learning_rate, total_steps, warmup_steps)
    muon = chain(scale_by_muon(views=views), scale_by_matrix_shape("rms", 0.2, views=views))
    return chain(
        clip_by_global_norm(1.0),
        partition_matrices(muon, scale_by_adam(b2=0.95), views),
        add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(rate),
    )
