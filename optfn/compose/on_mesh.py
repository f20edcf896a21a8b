"""Optimizers under automatic axes of a mesh, told where the params lie."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from optfn.core.data import per_leaf
from optfn.core.state import Context
from optfn.core.tree import PyTree
from optfn.core.wrapper import Wrapper
from optfn.storage.offload import check_not_inside


class on_mesh(Wrapper):
    """Tells a transform under automatic axes of a mesh how the params are sharded.

    Inside `jit` an array on automatic axes does not say where it lies: the compiler decides. Rules
    for matrices then have to let it gather each matrix on every device. Told where they lie, they
    spread whole matrices over the devices by all-to-all, as they do on explicit axes, where each
    array's type says it:

        tx = on_mesh(muon(0.02), jax.tree.map(lambda p: p.sharding, params))

    The updates are the same. Without a mesh, or on explicit axes, it does nothing, and rules about
    single entries do not need it.

    Args:
        transform: the transform.
        shardings: a `jax.sharding.NamedSharding` per leaf, as a tree (a prefix is enough), all on
            one mesh.

    Raises:
        ValueError: the shardings are on several meshes.
    """

    splittable = True

    shardings: Any = per_leaf(of=NamedSharding)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_inside(self.transform, "on_mesh", "places")

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        own = self.shardings.values(updates)
        mesh = _mesh_of(own)
        if mesh is None or not isinstance(ctx.step, Tracer) or _is_explicit(updates):
            return self.transform.apply_named(updates, slots, ctx)
        leaves, treedef = jax.tree.flatten(updates)
        forms = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for x, sharding in zip(leaves, own, strict=True)
        ]
        specs = treedef.unflatten([sharding.spec for sharding in own])
        slot_specs = None
        if slots is not None:
            slot_specs = jax.tree.map(_spec, self.transform.init(treedef.unflatten(forms)).slots)
        args = self.transform, updates, slots, ctx.params, ctx.step
        in_specs = PartitionSpec(), specs, slot_specs, None if ctx.params is None else specs

        def apply(transform, updates, slots, params, step):
            inner = ctx._replace(params=params, step=step)
            return transform.apply_named(updates, slots, inner)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            explicit: Any = jax.sharding.explicit_axes(in_sharding=(*in_specs, PartitionSpec()))
            return explicit(apply)(*args)


def _spec(form: jax.ShapeDtypeStruct) -> PartitionSpec:
    return form.sharding.spec if isinstance(form.sharding, NamedSharding) else PartitionSpec()


def _is_explicit(updates: PyTree) -> bool:
    return any(any(jax.typeof(x).sharding.spec) for x in jax.tree.leaves(updates))


def _mesh_of(shardings: list[NamedSharding]) -> Any:
    meshes = {sharding.mesh for sharding in shardings}
    if len(meshes) > 1:
        raise ValueError("on_mesh(shardings=...) are on several meshes, where one is wanted.")
    return next(iter(meshes), None)
