"""Optimizers inside `shard_map`, where every device holds a part of each array."""

from typing import Any

from optfn.core.data import static
from optfn.core.mapped import names_of, parts_over
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.wrapper import Wrapper


class across(Wrapper):
    """Inside `shard_map`, gives a transform the norms of whole arrays instead of those of parts.

    There an array is this device's part, and so is its norm: a clip would clip every part by
    itself. With the axis named, norms, sums and decisions over arrays in parts (whether a gradient
    is finite, whether a step is taken) are of all parts together, and equal on all of them:

        tx = across(chain(clip_by_global_norm(1.0), adamw(1e-3)), "data")

        @jax.shard_map(mesh=mesh, in_specs=..., out_specs=...)
        def step(params, grads, state):
            updates, state = tx.update(grads, state, params)

    An array is in parts over the axes that it varies over; one that is whole on every device, such
    as a bias beside sharded kernels, is counted once. Gradients must belong to their params:
    average those of data-parallel devices first, as `jax.grad` does for params that are whole.
    Where every device trains params of its own, an ensemble, leave it out.

    With `jit` alone it is not needed, nor outside of `shard_map`: there arrays are whole.

    Args:
        transform: the transform. Rules that sum along single axes of an array (`adafactor`,
            `adam_mini`, `sm3`, `centralize`, `adaptive_grad_clip`), that draw noise, or that call
            functions of the params are refused: which axes are in parts is not known here.
        axis_name: the name of the mapped axis, or a tuple of names.

    Raises:
        ValueError: the transform is refused; or the `shard_map` was made with `check_vma=False`,
            which does not track what varies.
    """

    elementwise = True

    axis_name: Any = static()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "axis_name", names_of(self.axis_name))
        name = _not_splittable(self.transform)
        if name is not None:
            raise ValueError(
                f"across(transform=...): {name} is not declared to compute the same from parts of "
                "arrays as from whole ones. Use it with jit, where arrays are whole; a rule of "
                f"your own that does says so by splittable = True in the class {name}."
            )

    def init_slots(self, params: PyTree) -> Any:
        with parts_over(self.axis_name):
            return super().init_slots(params)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        with parts_over(self.axis_name):
            return self.transform.apply_named(updates, slots, ctx)


def _not_splittable(tx: Transform) -> str | None:
    """The name of the innermost class that is not splittable."""
    inner = next(filter(None, map(_not_splittable, tx.contents)), None)
    if inner is not None:
        return inner
    own = vars(type(tx))  # a subclass of a splittable rule need not be
    functions = any("function" in kind for kind in tx.declared_extra_args().values())
    fits = own.get("splittable", own.get("elementwise", False)) and not functions
    return None if fits else type(tx).__name__
