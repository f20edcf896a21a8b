"""The check of the conformance kit that needs a mesh: where an optimizer's arrays lie."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optfn.core.transform import Transform
from optfn.core.tree import PyTree, leaf_paths

# On how many devices along each axis, and how the axes split the example's params there.
MESHES = {
    "one axis": ((2,), {"matrix": ("x", None), "vector": ("x",), "whole": (None, None)}),
    "two axes": ((2, 2), {"matrix": ("x", "y"), "vector": ("y",), "whole": (None, None)}),
}
SHAPES = {"matrix": (4, 6), "vector": (6,), "whole": (4, 2)}

# Which of params, gradients and state are split.
SPLIT = {
    "all split": (True, True, True),
    "the state alone split": (False, False, True),
    "the gradients alone split": (False, True, False),
    "params and gradients split, the state whole": (True, True, False),
}


def check(subject: Any) -> None:
    """Runs `tx` on meshes of one and of two dimensions, as far as there are devices for them.

    Slots lie where their params do, after `init` called eagerly, under `jit` and on
    `ShapeDtypeStruct`s, and after updates. With explicit axes the state's types are a fixed point,
    as the carry of a scan must be, and the updates have the types of the params, also where only
    some of state, params and gradients are split. With automatic axes one compiled step serves all
    steps.
    """
    for name, (sides, specs) in MESHES.items():
        if jax.device_count() < jnp.prod(jnp.asarray(sides)):
            continue
        explicit, automatic = (
            jax.make_mesh(
                sides,
                ("x", "y")[: len(sides)],
                devices=jax.devices()[: 2 ** len(sides)],
                axis_types=(kind,) * len(sides),
            )
            for kind in (AxisType.Explicit, AxisType.Auto)
        )
        # That updates lie where the params do, also if the gradients do not, is optfn's own rule.
        every = name == "two axes" and isinstance(subject.tx, Transform)
        ways = SPLIT if every else {"all split": SPLIT["all split"]}
        states = {}
        for way, split in ways.items():
            params, grads, like = (_abstract(explicit, specs, own) for own in split)
            if split[2] not in states:
                states[split[2]] = jax.eval_shape(subject.tx.init, like)
            how = f"explicit axes, {name}, {way}"
            _check_types(subject, params, grads, states[split[2]], how)
        if name == "two axes" or jax.device_count() < 4:
            _check_arrays(subject, automatic, specs, f"automatic axes, {name}")


def _abstract(mesh: Any, specs: dict[str, Any], split: bool) -> PyTree:
    """The example as shapes, split as `specs` say or not at all."""

    def place(name: str, shape: tuple[int, ...]) -> Any:
        spec = P(*specs[name]) if split else P(*[None] * len(shape))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    return {name: place(name, shape) for name, shape in SHAPES.items()}


def _check_types(subject: Any, params: PyTree, grads: PyTree, state: PyTree, how: str) -> None:
    """In the carry of a scan no type changes, and the updates have the types of the params."""

    def grads_of(params):
        return jax.tree.map(lambda p, g: jax.sharding.reshard(0.1 * p, g.sharding), params, grads)

    seen = []

    def step(carry, _):
        params, state = carry
        updates, state = subject.update(grads_of(params), state, params)
        seen.append(jax.tree.map(jax.typeof, (updates, state)))
        return (subject.moved(params, updates), state), None

    try:
        jax.eval_shape(lambda *carry: jax.lax.scan(step, carry, length=2), params, state)
    except Exception as error:
        raise AssertionError(f"{how}: {type(error).__name__}: {error}") from error
    updates, after = seen[0]
    for tree, expected, what in (
        (updates, params, "the update of"),
        (after, state, "after an update the state's"),
    ):
        for path, x, y in _leaves(tree, expected):
            if _spec(x) != _spec(y):
                raise AssertionError(f"{how}: {what} '{path}' lies as {_spec(x)}, not {_spec(y)}")


def _spec(x: Any) -> tuple[Any, ...]:
    """How explicit axes split an array."""
    return () if x.sharding is None else tuple(x.sharding.spec) if any(x.sharding.spec) else ()


def _check_arrays(subject: Any, mesh: Any, specs: dict[str, Any], how: str) -> None:
    """A state keeps its places, and a step that is jitted once serves all steps."""

    def place(name, shape):
        values = 0.5 + jnp.arange(jnp.prod(jnp.asarray(shape)), dtype=jnp.float32).reshape(shape)
        return jax.device_put(values, NamedSharding(mesh, P(*filter(None, specs[name]))))

    params = {name: place(name, shape) for name, shape in SHAPES.items()}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    first = subject.tx.init(params)
    for path, slot, param in _slots_of(first, params):
        _same_place(slot, param, f"{how}: the slot '{path}'")
    for path, x, y in _leaves(jax.jit(subject.tx.init)(params), first):
        if y.ndim:
            _same_place(x, y, f"{how}: '{path}' under jit(init)")
    if isinstance(subject.tx, Transform):
        abstract = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
        )
        for path, x, y in _leaves(subject.tx.init(abstract), first):
            _same_place(x, y, f"{how}: '{path}' of the abstract init")
    before = subject.donating_step._cache_size()
    state, given = first, params
    places = jax.tree.map(lambda x: x.sharding, first)
    for _ in range(3):
        _, state, given = subject.compiled_step(grads, state, given)
    for path, x, y in _leaves(state, places):
        if not x.sharding.is_equivalent_to(y, x.ndim):
            raise AssertionError(f"{how}: '{path}' moved from {y} to {x.sharding} in an update")
    compiled = subject.donating_step._cache_size() - before
    if compiled > 1:
        raise AssertionError(f"{how}: three steps compiled {compiled} programs")


def _leaves(tree: PyTree, other: PyTree) -> Any:
    """Path, leaf and leaf of two trees."""
    return zip(leaf_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


def _slots_of(state: PyTree, params: PyTree) -> Any:
    """Path, slot and param of the slots that have their param's shape."""
    for path, slot in zip(leaf_paths(state), jax.tree.leaves(state), strict=True):
        for name, param in params.items():
            if path.endswith(name) and slot.shape == param.shape:
                yield path, slot, param


def _same_place(x: Any, y: Any, what: str) -> None:
    if not x.sharding.is_equivalent_to(y.sharding, len(x.shape)):
        raise AssertionError(f"{what} has the sharding {x.sharding}, expected {y.sharding}")
