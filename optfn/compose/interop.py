"""Conversion from and to optax: its transformations as stages, optfn optimizers in optax."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax
import optax

from optfn.core.data import static
from optfn.core.dtypes import cast, compute_dtype
from optfn.core.transform import Context, ExtraKind, Transform, check_transform_type
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates

# The kinds of the extra arguments that optax's own transformations take.
KNOWN_KINDS: dict[str, ExtraKind] = {
    "value": "scalar",
    "grad": "tree",
    "value_fn": "function",
    "key": "key",
}


class from_optax(Transform):
    """Any optax transformation as a stage.

    It gets updates and params in the compute dtype, so its state is float32 also for bfloat16
    params. Its hyperparameters are closed over and are not leaves. Two of them in one chain need
    names: `from_optax(...).named("x")`.

    Args:
        transformation: an `optax.GradientTransformation`.
        extra_args: the extra arguments it needs: names that optax uses (`"value"`, `"grad"`,
            `"value_fn"`, `"key"`), or a dict from names to kinds (`"scalar"`, `"tree"`,
            `"function"`, `"key"`).
    """

    transformation: Any = static()
    declared: Any = static(default=(), kw_only=True)

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        extra_args: Iterable[str] | Mapping[str, ExtraKind] = (),
    ):
        if isinstance(transformation, Transform):
            raise TypeError("from_optax(...) got an optfn transform, which needs no conversion.")
        if isinstance(transformation, type) or not (
            hasattr(transformation, "init") and hasattr(transformation, "update")
        ):
            found = [type(transformation).__name__, getattr(transformation, "__name__", "")]
            raise TypeError(
                "from_optax(...) must be an optax transformation, found "
                f"{' '.join(filter(None, found))}."
            )
        if isinstance(extra_args, str):
            extra_args = (extra_args,)
        if not isinstance(extra_args, Mapping):
            unknown = [name for name in extra_args if name not in KNOWN_KINDS]
            if unknown:
                raise ValueError(
                    f"from_optax(extra_args=...): the kind of '{unknown[0]}' is not known; give a "
                    f"dict, as in {{'{unknown[0]}': 'scalar'}}."
                )
            extra_args = {name: KNOWN_KINDS[name] for name in extra_args}
        for name, kind in extra_args.items():
            if kind not in get_args(ExtraKind):
                raise ValueError(
                    f"from_optax(extra_args=...): the kind of '{name}' must be one of "
                    f"{get_args(ExtraKind)}, found {kind!r}."
                )
        object.__setattr__(self, "transformation", transformation)
        object.__setattr__(self, "declared", tuple(sorted(extra_args.items())))

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        return dict(self.declared)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.scaled()

    def init_slots(self, params: PyTree) -> Any:
        return self.transformation.init(_wide(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        params = None if ctx.params is None else _wide(ctx.params)
        own = {name: ctx.extra_args[name] for name, _ in self.declared}
        return self.transformation.update(updates, slots, params, **own)


def to_optax(tx: Transform) -> optax.GradientTransformationExtraArgs:
    """An optimizer closed over its numbers, as optax's own type.

    For frameworks that need a static optimizer attribute or that type. Extra arguments that no
    stage declares are dropped, as optax does; a missing declared one raises.

    Args:
        tx: an optfn transform.
    """
    check_transform_type(tx, "to_optax(...)")
    declared = tx.declared_extra_args()

    def update(updates, state, params=None, **extra_args):
        own = {name: value for name, value in extra_args.items() if name in declared}
        return tx.update(updates, state, params, **own)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _wide(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: cast(x, compute_dtype(x.dtype)), tree)
