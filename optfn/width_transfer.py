"""Hyperparameters of a narrow model for a wide one: muP, and the spectral condition."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optfn.compose.leaf_rates import with_leaf_rates
from optfn.core.dtypes import cast, compute_dtype, dtype_of
from optfn.core.matrix_axes import TABLES, VECTORS, MatrixAxes
from optfn.core.numerics import abs_sq, ratio
from optfn.core.text_table import in_columns, number
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PerLeaf, PyTree, bare, flatten_like, leaf_paths

# By what kind of steps an optimizer takes, the factor on the rate of a leaf whose inputs grew a
# times and whose outputs b times.
RATE_FACTORS: dict[str, Callable[[float, float], float]] = {
    "gradient": lambda a, b: b / a,
    "sign": lambda a, b: 1 / a,
    "orthogonal": lambda a, b: math.sqrt(b / a),
}


class Growth(NamedTuple):
    """How a leaf of a wide model differs from that of the base.

    Attributes:
        path: of the leaf.
        base_shape, shape: of the leaf in both models.
        inputs: how many times as many inputs (fan-in) the leaf has.
        outputs: how many times as many outputs (fan-out) it has.
        axes: the axes of inputs and those of outputs that grew.
        is_vector: whether it has no inputs, as biases and scales of norms.
    """

    path: str
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    inputs: float
    outputs: float
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    is_vector: bool

    @property
    def kind(self) -> str:
        """One of "hidden", "input", "output" and "vector"; "same" if it did not grow."""
        if self.inputs == self.outputs == 1:
            return "same"
        if self.is_vector:
            return "vector"
        return "input" if self.inputs == 1 else "output" if self.outputs == 1 else "hidden"

    @property
    def initial_scale(self) -> float:
        """The standard deviation of its initial entries over that of the base."""
        a, b = self.inputs, self.outputs
        if self.kind == "output":
            return 1 / a
        return min(1.0, math.sqrt(b / a)) / math.sqrt(a) if self.kind == "hidden" else 1.0


@dataclass(frozen=True, repr=False, eq=False)
class WidthTransfer:
    """What changes from a base model to a wider one. It prints as a table; see `width_transfer`.

    Attributes:
        leaves: a `Growth` for each leaf.
        base_sizes: the root mean square of each leaf of the base; None where its shape alone is
            known.
    """

    leaves: tuple[Growth, ...]
    base_sizes: tuple[Any, ...]
    _base: PyTree = field(repr=False)  # the shapes

    def init(self, params: PyTree) -> PyTree:
        """The params with the initial scale that the width asks for.

        Each leaf with inputs that grew gets the root mean square of the base's leaf times its
        `initial_scale`, whatever the initializer made of it. What is zero stays zero; vectors and
        leaves that did not grow stay as they are.

        Args:
            params: initial params of the wide model.

        Raises:
            ValueError: the params are not those of this transfer; or the base was given by its
                shapes alone.
        """
        leaves, treedef = jax.tree.flatten(params)
        _check_shapes(params, self.leaves)
        made = [
            leaf if grown.kind in ("same", "vector") else _scaled(leaf, size, grown)
            for leaf, size, grown in zip(leaves, self.base_sizes, self.leaves, strict=True)
        ]
        return treedef.unflatten(made)

    def optimizer(
        self,
        tx: optax.GradientTransformation,
        *,
        steps: Any = None,
        decay: str = "independent",
    ) -> with_leaf_rates:
        """The optimizer with the base's hyperparameters, for the wide model.

        Args:
            tx: the optimizer, tuned for the base.
            steps: what its steps are like: "gradient", in proportion to the gradient (SGD,
                momentum); "sign", entries of one size (Adam, Lion, RMSprop); or "orthogonal",
                matrices of one norm (Muon with `shape_scale="spectral"`, SOAP, Shampoo). One for
                all leaves, or per leaf: a tree or a function `(path, leaf) -> kind`. None finds it
                out, by letting `tx` take a few steps on the base with gradients of rank one.
            decay: "independent" keeps the decay of a step, rate times decay, over widths; "tied"
                lets it follow the rate. See `with_leaf_rates`.

        Returns:
            `with_leaf_rates(tx, factors, decay)`.

        Raises:
            ValueError: `steps` is None and cannot be found out, for the reason that the message
                has; or as `with_leaf_rates`.
        """
        tx = as_transform(tx, "WidthTransfer.optimizer(tx=...)")
        factors = self.rate_factors(tx, steps=steps)
        return with_leaf_rates(tx, factors, decay)

    def rate_factors(self, tx: optax.GradientTransformation, *, steps: Any = None) -> PyTree:
        """The factor on the learning rate of each leaf, a tree like the params.

        Args:
            tx, steps: see `optimizer`.
        """
        tx = as_transform(tx, "WidthTransfer.rate_factors(tx=...)")
        found = self._of_steps(steps) if steps is not None else self._found_out(tx)
        return jax.tree.unflatten(jax.tree.structure(self._base), found)

    def _of_steps(self, steps: Any) -> list[float]:
        where = "WidthTransfer.optimizer(steps=...)"
        kinds = PerLeaf.of(steps, where, str).values(self._base)
        for grown, kind in zip(self.leaves, kinds, strict=True):
            if kind not in RATE_FACTORS:
                raise ValueError(
                    f"{where} must be one of {', '.join(map(repr, RATE_FACTORS))}, found {kind!r} "
                    f"at '{grown.path}'."
                )
        return [
            RATE_FACTORS[kind](grown.inputs, grown.outputs)
            for grown, kind in zip(self.leaves, kinds, strict=True)
        ]

    def _found_out(self, tx: Transform) -> list[float]:
        if all(grown.kind == "same" for grown in self.leaves):
            return [1.0] * len(self.leaves)
        growth = _growth_of_steps(tx, self._base, self.leaves)
        return [
            math.sqrt(grown.outputs / grown.inputs) / own
            for grown, own in zip(self.leaves, growth, strict=True)
        ]

    def __repr__(self) -> str:
        heads = ["param", "base", "shape", "kind", "initial scale"]
        heads += [f"rate, {kind}" for kind in RATE_FACTORS]
        rows = [
            [
                grown.path or "(the root)",
                _shape(grown.base_shape),
                _shape(grown.shape),
                grown.kind,
                number(grown.initial_scale),
                *(number(f(grown.inputs, grown.outputs)) for f in RATE_FACTORS.values()),
            ]
            for grown in self.leaves
        ]
        return in_columns([heads, *rows], left=(0, 1, 2, 3))


def width_transfer(params: PyTree, base_params: PyTree, views: Any = None) -> WidthTransfer:
    """From a narrow model to a wide one: which rates and initial scales keep training alike.

        base = model(64).init(key, x)
        params = model(1024).init(key, x)
        transfer = width_transfer(params, base)
        params = transfer.init(params)
        tx = transfer.optimizer(adamw(3e-3, weight_decay=0.1))      tuned at width 64

    In a wide layer many small changes of weights add up. With one rate for all widths the
    activations of a wide model change too much in a step, and the best rate falls as the width
    grows. Here each layer's change of its outputs is kept, so that a rate found for the base is
    right for all widths (muP). The model is not touched: no factor stands in its code.

    Which axes of a leaf are inputs and which are outputs is read off the shapes, and printed, with
    all factors, by `print(transfer)`. Where a times as many inputs and b times as many outputs are
    than in the base, the spectral norm of a weight and of its change must grow as sqrt(b / a):

                        hidden       input          output        vector
                        a = b        a = 1          b = 1         b alone
        initial scale   1 / sqrt(a)  1              1 / a         as it is
        rate, SGD       1            b              1 / a         b
        rate, Adam      1 / a        1              1 / a         1
        rate, Muon      1            sqrt(b)        1 / sqrt(a)   sqrt(b)

    Embeddings are inputs; the head is an output. If one table is both, it counts as an input, and
    the model must divide the logits by the width. Attention over heads of one size needs nothing;
    if the size of heads grows, let the model divide the products of queries and keys by it, not by
    its root.

    Args:
        params: of the wide model, arrays or shapes (`jax.eval_shape`).
        base_params: of the same model at the base width; `init` needs arrays.
        views: how leaves are matrices, as for matrix optimizers; needed where shapes do not tell.
            By default the axes of an array are inputs, then outputs, as in Flax and Haiku, and of
            one called `weight` outputs, then inputs, as in Equinox, unless it is an embedding.

    Raises:
        ValueError: the trees differ, or the number of axes of a leaf; or it is not clear which of
            its axes are inputs.

    Source: Yang et al. 2022, "Tensor programs V"; Yang, Simon and Bernstein 2023, "A spectral
    condition for feature learning".
    """
    params, base = bare(params), bare(base_params)
    bases = flatten_like(base, params, "base_params", "params")
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    given: Sequence[Any] = [None] * len(leaves)
    if views is not None:
        given = PerLeaf.of(views, "width_transfer(views=...)", MatrixAxes).values(params)
    grown = [
        _growth(path, jnp.shape(own), jnp.shape(leaf), view)
        for path, own, leaf, view in zip(paths, bases, leaves, given, strict=True)
    ]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype_of(x)), base)
    return WidthTransfer(tuple(grown), tuple(map(_size_of_base, bases)), shapes)


def _growth(
    path: str, base: tuple[int, ...], shape: tuple[int, ...], view: MatrixAxes | None
) -> Growth:
    if len(base) != len(shape) or 0 in base:
        raise ValueError(
            f"width_transfer(...): '{path}' has shape {shape}, and {base} in base_params; widths "
            "alone may differ."
        )
    axes = [i for i, (old, new) in enumerate(zip(base, shape, strict=True)) if old != new]
    is_vector = len(shape) < 2 or path.lower().split("/")[-1] in VECTORS
    if view is not None and view.is_matrix:
        stack, rows, columns = view.axes(shape)
        inside, outside = (tuple(i for i in axes if i in side) for side in (columns, rows))
        is_vector = False
        if set(stack) & set(axes):
            inside = None
    elif is_vector:
        inside, outside = (), tuple(axes)
    else:
        inside, outside = _inputs_and_outputs(path, base, shape, axes)
    if inside is None:
        raise ValueError(
            f"width_transfer(...): '{path}' grew from {base} to {shape}: which axes are inputs? "
            "Say it by the path, as in views=optfn.matrices({"
            f'"{path}": optfn.MatrixAxes(rows=-1, columns=-2)}}), where rows are outputs. Axes of '
            "neither must not grow."
        )

    def times(side: Sequence[int]) -> float:
        return math.prod(shape[i] / base[i] for i in side)

    return Growth(path, base, shape, times(inside), times(outside), (inside, outside), is_vector)


def _inputs_and_outputs(
    path: str, base: tuple[int, ...], shape: tuple[int, ...], axes: list[int]
) -> tuple[Any, Any]:
    """The axes that grew, as inputs and outputs; None where the shapes do not tell."""
    entries = path.lower().split("/")
    outputs_first = entries[-1] == "weight" and not any(map(_is_lookup, entries))
    if outputs_first:
        axes = axes[::-1]
    first, last = (len(shape) - 1, 0) if outputs_first else (0, len(shape) - 1)
    if not axes:
        return (), ()
    if len(axes) == 1:
        if axes[0] == last:
            return (), tuple(axes)
        return (tuple(axes), ()) if len(shape) == 2 and axes[0] == first else (None, None)
    growth = [shape[i] / base[i] for i in axes]
    splits = [
        k for k in range(1, len(axes)) if math.isclose(math.prod(growth[:k]), math.prod(growth[k:]))
    ]
    if len(axes) == 2 == len(shape):
        splits = [1]
    if len(splits) != 1:
        return None, None
    return tuple(axes[: splits[0]]), tuple(axes[splits[0] :])


def _is_lookup(entry: str) -> bool:
    """Whether it is the name of a table whose rows are looked up, and not of a head."""
    table = entry in TABLES or "embed" in entry
    return table and "unembed" not in entry and "head" not in entry and entry != "logits"


def _check_shapes(params: PyTree, grown: Sequence[Growth]) -> None:
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    if paths != [x.path for x in grown]:
        raise ValueError(
            "WidthTransfer.init(params): they are another tree than that of the transfer."
        )
    for leaf, own in zip(leaves, grown, strict=True):
        if jnp.shape(leaf) != own.shape:
            raise ValueError(
                f"WidthTransfer.init(params): '{own.path}' has shape {jnp.shape(leaf)}, the "
                f"transfer is for {own.shape}."
            )


def _scaled(leaf: jax.Array, base_size: Any, grown: Growth) -> jax.Array:
    """A leaf with the root mean square of the base's times its initial scale."""
    if base_size is None:
        raise ValueError(
            f"WidthTransfer.init(params): the base has a shape alone at '{grown.path}'; give "
            "width_transfer the arrays of the base, whose size sets that of the wide model."
        )
    leaf = jnp.asarray(leaf)
    factor = ratio(grown.initial_scale * base_size, _size(leaf))
    return (leaf * factor).astype(leaf.dtype)


def _size_of_base(x: Any) -> Any:
    """A number where the array is known, so that no program holds the array."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return None
    if isinstance(x, Tracer):
        return _size(x)
    wide = np.abs(np.asarray(x).astype(complex if np.iscomplexobj(x) else float))
    return float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 0.0


def _size(x: jax.Array) -> jax.Array:
    """The root mean square, in float32 or wider."""
    return jnp.sqrt(jnp.mean(abs_sq(cast(x, compute_dtype(x.dtype)))))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


# How the steps of an optimizer grow with the width of a layer is measured. The gradient of a weight
# is a sum of few outer products, and what counts is how far the step goes along them. So the
# optimizer gets outer products for gradients, of the base's shapes and of the same with sides
# doubled, and the ratio of the steps' components along them is the growth.


TAKEN, EARLIER = 8, 4  # steps after which it is measured, and by which it must have settled


def _growth_of_steps(tx: Transform, base: PyTree, leaves: Sequence[Growth]) -> list[float]:
    """By how much further a step goes along its gradient at the grown shapes."""
    where = "WidthTransfer.optimizer(steps=None)"
    say = f"Say it: steps={' or steps='.join(map(repr, RATE_FACTORS))}, for one or per leaf."
    needed = list(tx.declared_extra_args())
    if needed:
        raise ValueError(
            f"{where} finds out what steps are like from gradients alone, but the optimizer also "
            f"needs {', '.join(needed)}. {say}"
        )
    for grown in leaves:
        if grown.kind == "hidden" and not math.isclose(grown.inputs, grown.outputs):
            raise ValueError(
                f"{where}: the inputs of '{grown.path}' grew {grown.inputs:g} times, its outputs "
                f"{grown.outputs:g} times; what steps are like is found out for equal ones. {say}"
            )
    structure = jax.tree.structure(base)
    total = sum(math.prod(grown.base_shape) for grown in leaves)
    size = 0.25 / math.sqrt(max(total, 1))  # shorter than what is clipped
    narrow, wide = (
        np.abs(np.asarray(_components(tx, *map(structure.unflatten, probe)), np.float64))
        for probe in (_probe(leaves, size, is_wide=is_wide) for is_wide in (False, True))
    )
    if not (narrow[-1] > 0).any():
        raise ValueError(
            f"{where}: the optimizer takes no step in its first {TAKEN} updates, as one inside of "
            f"accumulate or with a rate of 0 does. Let the transfer be inside of accumulate. {say}"
        )
    growth = []
    for i, grown in enumerate(leaves):
        side = grown.outputs if grown.inputs == 1 else grown.inputs
        if grown.kind == "same" or (narrow[-1, i] == 0 and wide[-1, i] == 0):  # frozen
            growth.append(math.sqrt(grown.outputs / grown.inputs))
            continue
        early, late = (np.log2(wide[at, i] / narrow[at, i]) for at in (EARLIER - 1, TAKEN - 1))
        # Of gradients, signs and orthogonal matrices these are halves.
        exponent = round(2 * late) / 2 if np.isfinite(late) else 0.0
        if not (abs(late - exponent) < 0.1 and abs(late - early) < 0.1):
            raise ValueError(
                f"{where}: the steps of '{grown.path}' follow no power of the width: of twice the "
                f"sides they are 2^{early:.2f} times as large after {EARLIER} updates and "
                f"2^{late:.2f} times after {TAKEN}. {say}"
            )
        growth.append(side**exponent)
    return growth


def _probe(leaves: Sequence[Growth], size: float, *, is_wide: bool) -> tuple[list[Any], list[Any]]:
    """Gradients of rank one, with entries of this size, and params, of the base or wider."""
    rng = np.random.default_rng(0)
    grads, params = [], []
    for grown in leaves:
        shape, of_one = list(grown.base_shape), size
        for side, axes in enumerate(grown.axes):
            if axes and is_wide:
                shape[axes[0]] *= 2
                of_one /= side + 1  # more outputs, each with its share of the loss
        signs = [rng.choice(np.array([-1, 1], np.float32), n) for n in shape]
        outer = functools.reduce(np.multiply.outer, signs, np.float32(1))
        halved = {"output": 2.0, "hidden": 2**0.5}.get(grown.kind, 1.0) if is_wide else 1.0
        param = 0.02 / halved * rng.standard_normal(shape, np.float32)
        # Orthogonal to the gradient, so that a decay has no part in the component.
        params.append(np.float32(param - outer * np.mean(param * outer)))
        grads.append(np.float32(of_one * outer))
    return grads, params


@jax.jit
def _components(tx: Transform, grads: PyTree, params: PyTree) -> jax.Array:
    """How far each update goes along the gradient, float `[TAKEN, leaves]`."""

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        updates, state = tx.update(grads, state, params)
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True)
        return state, jnp.stack([jnp.vdot(g, u) / jnp.sqrt(jnp.vdot(g, g)) for u, g in pairs])

    return jax.lax.scan(step, tx.init(params), length=TAKEN)[1]
