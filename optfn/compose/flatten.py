"""Many small arrays packed into one long vector."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.inputs import check_floating
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.placement import replicate, split_like
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.wrapper import Wrapper


class flatten(Wrapper):
    """Gives a transform all leaves as one vector for each dtype of the params.

    For hundreds of small arrays or more, where the overhead of an operation exceeds its work: the
    transform is traced and run for one array. Each update packs the gradients and unpacks the
    result, so a tree of a few large arrays gains nothing, and the unpacking may take longer to
    compile than the transform of each array would.

    It takes elementwise rules, whose class declares `elementwise = True`; their updates are the
    same. Others are refused: norms of an array or of the whole tree, noise, values for each leaf
    (masks, labels, numbers by path) and functions of the params. Put them outside:

        chain(clip_by_global_norm(1.0), flatten(adam(1e-3)))
        partition({"decay": flatten(adamw(1e-3)), "plain": flatten(adam(1e-3))}, labels)

    The slots are vectors with the leaves in the order of the tree, so a checkpoint fits only params
    with the same leaves in the same order. Sharded params are gathered; use it for replicated ones.

    Args:
        transform: the transform.

    Raises:
        ValueError: the transform is refused; or `update` was not given params that are narrower
            than float32, without which it cannot tell how they were packed.
    """

    elementwise = True
    splittable = False  # one vector of parts and whole leaves

    def __post_init__(self) -> None:
        super().__post_init__()
        reason = _why_not_elementwise(self.transform)
        if reason is not None:
            raise ValueError(
                f"flatten(transform=...): {reason}. Let it stand outside of flatten, where it sees "
                "the arrays."
            )

    def init_slots(self, params: PyTree) -> Any:
        check_floating("the param", params)
        return self.transform.init_named(pack(params, params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        check_floating("the gradient", updates)
        like = updates if ctx.params is None else ctx.params
        if like is updates:
            expected = jax.tree.structure(jax.eval_shape(self.init_slots, updates))
            if jax.tree.structure(slots or {}) != expected:
                raise ValueError(
                    "flatten needs the params: they are not of the dtypes of these gradients, and "
                    "their slots are packed by dtype. Call update(grads, state, params)."
                )

        def packs(kind: str, value: Any) -> Any:
            return pack(value, like) if kind == "tree" else value

        kinds = self.transform.declared_extra_args()
        extra = {k: packs(kinds.get(k, ""), value) for k, value in ctx.extra_args.items()}
        params = None if ctx.params is None else pack(ctx.params, like)
        inside = ctx._replace(params=params, extra_args=extra)
        vectors, new = self.transform.apply_named(pack(updates, like), slots, inside)
        return unpack(vectors, like), new

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        vectors = pack(params, params)
        own = self.transform.evaluation_params_named(vectors, slots, step)
        return unpack(own, params)


def _why_not_elementwise(tx: Transform) -> str | None:
    """Why the transform is not elementwise, for the innermost such part; None if it is."""
    inner = next(filter(None, map(_why_not_elementwise, tx.contents)), None)
    if inner is not None:
        return inner
    name = type(tx).__name__
    # In its own class: a subclass of an elementwise rule need not be elementwise.
    if not vars(type(tx)).get("elementwise", False):
        return (
            f"{name} is not declared to treat every entry by itself (a rule of your own that does "
            f"says so by elementwise = True in the class {name})"
        )
    for field, value in tx.fields("per_leaf"):
        if value is not None and not value.is_one:
            return f"{name} has a value for each leaf ({field})"
    for field, value in tx.fields("number"):
        if isinstance(value, NumberByPath):
            return f"{name} has a number by path ({field})"
    functions = [arg for arg, kind in tx.declared_extra_args().items() if "function" in kind]
    return f"{name} calls a function of the params ({functions[0]})" if functions else None


def pack(tree: PyTree, params: PyTree) -> PyTree:
    """The leaves concatenated, in one vector for each dtype of their params; else the tree."""
    if not jax.tree.leaves(params):
        return tree  # a node that stands for the params stands for the vectors too
    groups: dict[str, list] = {}
    for x, p in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
        groups.setdefault(p.dtype.name, []).append(lax.reshape(replicate(x), (p.size,)))
    return {name: jnp.concatenate(parts) for name, parts in groups.items()}


def unpack(vectors: PyTree, params: PyTree) -> PyTree:
    """The inverse of `pack`, for a tree like the params."""
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:
        return vectors
    parts = {
        name: iter(lax.split(vector, [p.size for p in leaves if p.dtype.name == name]))
        for name, vector in vectors.items()
    }
    apart = [lax.reshape(next(parts[p.dtype.name]), p.shape) for p in leaves]
    return treedef.unflatten(map(split_like, apart, leaves))
