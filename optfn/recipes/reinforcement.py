"""Reinforcement learning by policy gradients."""

from typing import Any

from optfn import schedules
from optfn.compose.chain import chain
from optfn.core.data import check_within
from optfn.optimizers.elementwise.adam import adam
from optfn.transforms.clip import clip_by_global_norm


def rl_adam(
    learning_rate: Any = 2.5e-4,
    *,
    total_steps: Any,
    max_norm: Any = 0.5,
) -> chain:
    """Adam as PPO and its kin use it: a large eps, a tight clip, and a rate that falls to 0.

    It is for gradients that are mostly noise, of data that the policy itself brings about: an eps
    of 1e-5 makes small steps where gradients are as good as zero, the clip bounds what one batch
    can do to the policy, and the falling rate ends with one that stands still.

    Args:
        learning_rate: at the first update, a number: 2.5e-4 for Atari, 3e-4 for MuJoCo.
        total_steps: the number of updates in the run, not of the environment's steps: for PPO
            iterations times epochs times mini-batches.
        max_norm: of the whole gradient.

    Raises:
        ValueError: `total_steps` is below 1.

    Source: Schulman et al. 2017 (PPO): rates; Huang et al. 2022, "The 37 implementation details of
    PPO": eps, clip, line to 0.
    """
    rate = schedules.linear(learning_rate, 0.0, total_steps)
    check_within(rate.transition_steps, (1, float("inf")), "rl_adam(total_steps=...)")
    return chain(clip_by_global_norm(max_norm), adam(rate, eps=1e-5))
