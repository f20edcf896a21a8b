"""MuonClip: Muon with AdamW's rate and decay, and a bound on the logits of attention."""

from typing import Any

import optax

from optfn.compose.qk_clip import qk_clip
from optfn.optimizers.elementwise.adam import adamw
from optfn.optimizers.matrix.muon import muon


def muon_clip(
    learning_rate: Any,
    threshold: Any = 100.0,
    alpha: Any = 0.5,
    beta: Any = 0.95,
    weight_decay: Any = 0.1,
    weight_decay_mask: Any = None,
    *,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    eps: Any = 1e-7,
    nesterov: bool = False,
    dtype: str | None = None,
    consistent_rms: Any = 0.2,
    query: str = "query",
    key: str = "key",
    head_axis: int = -2,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> qk_clip:
    """MuonClip: `muon` at AdamW's rate and decay, in `qk_clip`.

    For large transformers whose attention logits grow under Muon. `update` and `step` take the
    largest logits of each head as the extra argument `max_logits`; see `qk_clip`.

        optimizer = muon(learning_rate, weight_decay=0.1, nesterov=False, consistent_rms=0.2)
        qk_clip(optimizer, threshold, alpha)

    Args:
        learning_rate: of all params, a number or a schedule: AdamW's.
        threshold: the largest logit that may be, a number or a schedule.
        alpha: the share of the queries when logits are shrunk.
        beta: the share of the average gradient that is kept.
        weight_decay: decoupled, times the learning rate.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        ns_coeffs, ns_steps: the polynomials, as `linalg.polynomials` takes them.
        eps: added to the norm that is divided out, though never more than the norm itself.
        nesterov: look ahead by one more step, as Liu et al. 2025 do.
        dtype: the dtype of the products of the orthogonalization; at least float32 by default.
        consistent_rms: the root mean square of a step of a matrix; 0.2 is that of AdamW's.
        query, key, head_axis: where queries, keys and heads are; see `qk_clip`.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
            Queries, keys and values `(embed, heads, size)` must be described.
        rest: the optimizer of all other leaves; by default
            `adamw(learning_rate, b2=0.95, weight_decay=weight_decay)`.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`; at
            `update` as `qk_clip` does.

    Source: Kimi team 2025, "Kimi K2: open agentic intelligence"; Liu et al. 2025.
    """
    optimizer = muon(
        learning_rate,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        nesterov=nesterov,
        dtype=dtype,
        consistent_rms=consistent_rms,
        views=views,
        rest=adamw(learning_rate, b2=0.95, weight_decay=weight_decay) if rest is None else rest,
    )
    return qk_clip(optimizer, threshold, alpha, query=query, key=key, head_axis=head_axis)
