"""A bound on the logits of attention, by shrinking queries and keys after each step."""

from collections.abc import Iterator
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import static
from optfn.core.dtypes import cast, own_dtype, real_dtype
from optfn.core.inputs import to_arrays
from optfn.core.state import Context
from optfn.core.tree import PyTree, leaf_paths, location
from optfn.core.updates_kind import check_steps
from optfn.core.wrapper import Wrapper


class qk_clip(Wrapper):
    """Bounds the attention logits: after a step, shrinks the queries and keys of heads over it.

        gamma_h = min(1, threshold / S_h)            S_h is the largest logit of head h
        Wq_h <- gamma_h^alpha Wq_h                   Wk_h <- gamma_h^(1 - alpha) Wk_h

    Around a whole optimizer, which it does not touch otherwise: the updates lead to the shrunk
    params. Large logits make attention collapse onto one position and training diverge; Muon lets
    them grow more than AdamW does, see `muon_clip`. Where queries and keys are normalized, leave it
    out, since it does nothing.

    `update` and `step` take the largest logits of each head, over the batch and all positions, as
    the extra argument `max_logits`: a tree with an array `(heads,)` at the path of each attention
    block, that is, of what holds the queries and the keys. For a `MultiHeadDotProductAttention` of
    Flax at `blocks_0/attention` either of these will do:

        {"blocks_0": {"attention": logits}}          or          {"blocks_0/attention": logits}

    The path may go on, as in what Flax's `sow` collects; of several arrays for one block the larger
    entries count. Blocks that `nn.scan` has stacked take `(layers, heads)`. Every block must be
    there; zeros leave one as it is.

        params, state = optfn.step(tx, params, grads, state, max_logits=max_logits)

    Where each key belongs to a group of queries, the key takes the share of the smallest gamma_h of
    its group, and the queries the rest.

    Args:
        transform: the optimizer.
        threshold: the largest logit that may be, a number or a schedule.
        alpha: the share of the queries, from 0 to 1; a number or a schedule.
        query: where a block has its queries, relative to its path: all leaves there, kernels and
            biases.
        key: where it has its keys.
        head_axis: the axis of the heads in kernels and biases of two or more axes, behind the axes
            of a stack: -2 in Flax's `(embed, heads, size)` and in Equinox's
            `(heads * size, embed)`, -1 in `(embed, heads * size)`. Where heads are joined with
            their entries, those of a head are next to each other.

    Raises:
        ValueError: `update` was not given the params; `max_logits` misses a block, or names
            something that is none; or a shape does not fit the heads.

    Source: Kimi team 2025, "Kimi K2: open agentic intelligence".
    """

    extra_args: ClassVar = {"max_logits": "any"}
    needs_params = True

    threshold: Any = 100.0
    alpha: Any = 0.5
    query: str = static(default="query", kw_only=True)
    key: str = static(default="key", kw_only=True)
    head_axis: int = static(default=-2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.transform, "qk_clip(transform=...)")

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        updates, slots = self.transform.apply_named(updates, slots, ctx)
        paths, (leaves, treedef) = leaf_paths(updates), jax.tree.flatten(updates)
        params = jax.tree.leaves(ctx.params)
        blocks = self._blocks(paths)
        for block, largest in _by_block(ctx.extra_args["max_logits"], blocks).items():
            for i, factor in self._factors(largest, blocks[block], params, paths):
                factor = cast(factor, real_dtype(leaves[i].dtype))
                moved = cast(params[i], leaves[i].dtype) + leaves[i]
                leaves[i] = leaves[i] + (factor - 1) * moved
        return treedef.unflatten(leaves), slots

    def _blocks(self, paths: list[str]) -> dict[str, "_Block"]:
        """The attention blocks, by path."""
        queries, keys = (_under(name, paths) for name in (self.query, self.key))
        return {block: _Block(queries[block], keys[block]) for block in queries if block in keys}

    def _factors(
        self, largest: jax.Array, block: "_Block", params: list[Any], paths: list[str]
    ) -> Iterator[tuple[int, jax.Array]]:
        """By what to multiply each leaf of a block, with its number."""
        dtype = own_dtype(params)
        largest, threshold = cast(largest, dtype), cast(self.threshold, dtype)
        gamma = jnp.where(largest > threshold, threshold / largest, 1)
        gamma = jnp.where(largest < jnp.inf, gamma, jnp.nan)
        *stack, heads = gamma.shape

        def sides(i: int) -> tuple[int, int]:
            """The axis of the heads, and its length."""
            shape = jnp.shape(params[i])
            own = shape[len(stack) :]
            axis = self.head_axis if len(own) > 1 else -1
            if list(shape[: len(stack)]) != stack or not -len(own) <= axis < len(own):
                raise ValueError(
                    f"{location(paths[i])} the param has shape {shape}, which has no axis for the "
                    f"heads of max_logits, whose shape is {gamma.shape}."
                )
            axis = len(stack) + axis % len(own)
            return axis, shape[axis]

        def spread(factor: jax.Array, i: int, entries: int) -> jax.Array:
            axis, _ = sides(i)
            shape = [1] * jnp.ndim(params[i])
            shape[: len(stack)] = stack
            shape[axis] = factor.shape[-1] * entries
            return jnp.repeat(factor, entries, axis=-1).reshape(shape)

        def parts(i: int, size: int, what: str) -> int:
            _, length = sides(i)
            if length % size:
                raise ValueError(
                    f"{location(paths[i])} the axis of the heads has length {length}, which is no "
                    f"multiple of {what}; qk_clip(head_axis=...) says which axis it is."
                )
            return length // size

        entries = [parts(i, heads, f"the {heads} heads of max_logits") for i in block.queries]
        of_key = [parts(i, entries[0], f"the {entries[0]} entries of a head") for i in block.keys]
        groups = of_key[0]
        if not groups or heads % groups or len({*entries}) > 1 or len({*of_key}) > 1:
            raise ValueError(
                f"{location(paths[block.keys[0]])} there are {groups} heads of keys for {heads} of "
                "queries; qk_clip(head_axis=...) says which axis is that of the heads."
            )
        grouped = gamma.reshape(*stack, groups, heads // groups)
        shrink_keys = jnp.min(grouped, axis=-1, keepdims=True) ** (1 - self.alpha)
        shrink_queries = (grouped / shrink_keys).reshape(gamma.shape)
        for i in block.queries:
            yield i, spread(shrink_queries, i, entries[0])
        for i in block.keys:
            yield i, spread(shrink_keys[..., 0], i, entries[0])


class _Block(NamedTuple):
    """The numbers of the leaves of an attention block."""

    queries: list[int]
    keys: list[int]


def _under(name: str, paths: list[str]) -> dict[str, list[int]]:
    """The numbers of the leaves under an entry of this name, by the path of what holds it."""
    found: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        before, entry, _ = f"/{path}/".rpartition(f"/{name}/")
        if entry:
            found.setdefault(before.lstrip("/"), []).append(i)
    return found


def _by_block(max_logits: PyTree, blocks: dict[str, _Block]) -> dict[str, jax.Array]:
    """The largest logits of each block."""
    max_logits = to_arrays(max_logits, "max_logits")
    found: dict[str, list[jax.Array]] = {}
    for path, value in zip(leaf_paths(max_logits), jax.tree.leaves(max_logits), strict=True):
        entries = path.split("/") if path else []
        ways = ("/".join(entries[:n]) for n in range(len(entries), -1, -1))
        block = next((way for way in ways if way in blocks), None)
        if block is None:
            raise ValueError(
                f"max_logits has an entry {location(path)}, where no attention block is: "
                f"{_listed(blocks)}."
            )
        if not value.ndim:
            raise ValueError(
                f"max_logits must have the largest logit of every head, found one number "
                f"{location(path)}."
            )
        found.setdefault(block, []).append(value)
    missing = [block for block in blocks if block not in found]
    if missing:
        raise ValueError(
            f"max_logits has no entry for the attention block {location(missing[0])}; zeros leave "
            "it as it is."
        )
    return {block: reduce(jnp.maximum, values) for block, values in found.items()}


def _listed(blocks: dict[str, _Block]) -> str:
    if not blocks:
        return "nothing in the params holds queries and keys by the names that qk_clip was given"
    return f"there are {', '.join(repr(block) for block in blocks)}"
