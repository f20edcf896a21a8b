"""Conversion from and to optax: its transformations as stages, optfn optimizers in optax."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from optfn.core.data import static
from optfn.core.dtypes import cast, compute_dtype
from optfn.core.inputs import is_inexact
from optfn.core.signatures import needed_by
from optfn.core.state import Context
from optfn.core.transform import ExtraKind, Transform, check_transform_type, converted
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

    Whatever takes a transform also takes optax's and converts it; call this to say more. It gets
    updates and params in the compute dtype, so its state is float32 also for bfloat16 params, and
    all extra arguments of `update`, whoever declares them. Integer leaves reach it as they are, and
    it must give integers for them. Its hyperparameters are closed over and are not leaves. Its name
    is that of optax's function, such as "trace"; "from_optax" for a chain and for functions of your
    own.

    Args:
        transformation: an `optax.GradientTransformation`.
        extra_args: those among the extra arguments that are checked and, inside a `partition` and
            its like, cut to its leaves: names that optax uses (`"value"`, `"grad"`, `"value_fn"`,
            `"key"`), or a dict from names to kinds (`"scalar"`, `"tree"`, `"function"`, `"key"`).
            None finds those that its `update` needs by name; a chain names none.
    """

    transformation: Any = static()
    declared: Any = static(default=(), kw_only=True)
    _stateful: bool = static(default=True, init=False)

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        extra_args: Iterable[str] | Mapping[str, ExtraKind] | None = None,
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
        if extra_args is None:
            extra_args = KNOWN_KINDS.keys() & set(needed_by(transformation.update))
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
        object.__setattr__(self, "_stateful", _has_state(transformation))

    @property
    def name(self) -> str:
        factory, *inside = getattr(self.transformation.init, "__qualname__", "").split(".")
        is_known = "<locals>" in inside and factory.isidentifier() and factory != "chain"
        return self._given_name or (factory if is_known else type(self).__name__)

    @property
    def stateful(self) -> bool:
        return self._stateful

    @property
    def _needs_floats(self) -> bool:
        return False

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        return dict(self.declared)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.scaled()

    def init_slots(self, params: PyTree) -> Any:
        return self.transformation.init(_wide(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        params = None if ctx.params is None else _wide(ctx.params)
        state = slots if self.stateful else self.transformation.init(updates)
        update = optax.with_extra_args_support(self.transformation).update
        return update(updates, state, params, **ctx.extra_args)


@converted.register(optax.GradientTransformation)
def _(value: optax.GradientTransformation, where: str) -> Transform:
    return value if isinstance(value, Transform) else from_optax(value)


def to_optax(tx: Transform) -> optax.GradientTransformationExtraArgs:
    """An optimizer closed over its numbers, as optax's own type.

    A transform is of that type already. This pair has no leaves, for frameworks that refuse arrays
    in a static attribute or take a pytree apart.

    Args:
        tx: an optfn transform.
    """
    check_transform_type(tx, "to_optax(...)")
    return optax.GradientTransformationExtraArgs(tx.init, tx.update)


def _has_state(transformation: optax.GradientTransformation) -> bool:
    """Whether the state has leaves; a transformation that cannot tell may have some."""
    try:
        state = jax.eval_shape(transformation.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    except Exception:
        return True
    return bool(jax.tree.leaves(state))


def _wide(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: cast(x, compute_dtype(x.dtype)) if is_inexact(x) else x, tree)
