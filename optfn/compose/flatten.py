"""Very many small arrays as one long one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.inputs import check_floating
from optfn.core.placement import replicate, split_like
from optfn.core.transform import Context, Transform
from optfn.core.tree import PyTree
from optfn.core.wrapper import Wrapper


class flatten(Wrapper):
    """Gives a transform all leaves as one vector for each dtype of the params.

    For hundreds of small arrays and more, where the operations cost more than what they do: the
    transform is traced and run for one array. Each update copies the gradients together, and its
    result apart, so that a tree of a few large arrays gains nothing; and to take the result apart
    may compile for longer than the transform for each array would.

    It takes rules about each entry, which say so by `elementwise = True` in their class: their
    updates are the same. Others are refused: norms of an array or of the whole tree, noise, values
    for each leaf (masks, labels) and functions of the params. Let them stand outside:

        chain(clip_by_global_norm(1.0), flatten(adam(1e-3)))
        partition({"decay": flatten(adamw(1e-3)), "plain": flatten(adam(1e-3))}, labels)

    The slots are vectors, with the leaves in the order of the tree: a checkpoint is bound to this
    order, and to all leaves being there. Params that are sharded are gathered; keep it to those
    that every device holds.

    Args:
        transform: the transform.

    Raises:
        ValueError: a transform that is refused; or `update` was not given the params.
    """

    elementwise = True
    needs_params = True

    def __post_init__(self):
        super().__post_init__()
        reason = _why_not_elementwise(self.transform)
        if reason is not None:
            raise ValueError(
                f"flatten(transform=...): {reason}. Let it stand outside of flatten, where it sees "
                "the arrays."
            )

    def init_slots(self, params: PyTree) -> Any:
        check_floating("the param", params)
        return self.transform.init_named(_pack(params, params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        check_floating("the gradient", updates)

        def packs(kind: str, value: Any) -> Any:
            return _pack(value, ctx.params) if kind == "tree" else value

        kinds = self.transform.declared_extra_args()
        extra = {name: packs(kind, ctx.extra_args[name]) for name, kind in kinds.items()}
        inside = ctx._replace(params=_pack(ctx.params, ctx.params), extra_args=extra)
        vectors = _pack(updates, ctx.params)
        vectors, new = self.transform.apply_named(vectors, slots, inside)
        return _unpack(vectors, ctx.params), new

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        vectors = _pack(params, params)
        own = self.transform.evaluation_params_named(vectors, slots, step)
        return _unpack(own, params)


def _why_not_elementwise(tx: Transform) -> str | None:
    """Why longer arrays would change the updates, by the innermost part that is to blame."""
    inner = next(filter(None, map(_why_not_elementwise, tx.contents)), None)
    if inner is not None:
        return inner
    name = type(tx).__name__
    # In its own class: what a subclass of an elementwise rule does is not known.
    if not vars(type(tx)).get("elementwise", False):
        return (
            f"{name} is not declared to treat every entry by itself (a rule of your own that does "
            f"says so by elementwise = True in the class {name})"
        )
    for field, value in tx.fields("per_leaf"):
        if value is not None and not value.is_one:
            return f"{name} has a value for each leaf ({field})"
    functions = [arg for arg, kind in tx.declared_extra_args().items() if "function" in kind]
    return f"{name} calls a function of the params ({functions[0]})" if functions else None


def _pack(tree: PyTree, params: PyTree) -> dict[str, jax.Array]:
    """The leaves one after the other, in a vector for each dtype of their params."""
    groups: dict[str, list] = {}
    for x, p in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
        groups.setdefault(p.dtype.name, []).append(lax.reshape(replicate(x), (p.size,)))
    return {name: jnp.concatenate(parts) for name, parts in groups.items()}


def _unpack(vectors: dict[str, jax.Array], params: PyTree) -> PyTree:
    """The inverse of `_pack`, for a tree like the params."""
    leaves, treedef = jax.tree.flatten(params)
    parts = {
        name: iter(lax.split(vector, [p.size for p in leaves if p.dtype.name == name]))
        for name, vector in vectors.items()
    }
    apart = [lax.reshape(next(parts[p.dtype.name]), p.shape) for p in leaves]
    return treedef.unflatten(map(split_like, apart, leaves))
