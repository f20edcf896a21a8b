"""The conformance kit: what every optimizer must do, as functions that fail with a sentence.

`check_transform(tx)` runs all checks that apply to an optax-style pair of `init` and `update`,
from optfn or elsewhere, and reports every failure. Each check is a plain function.
"""

import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import experimental

from optfn.core.hyperparameters import in_axes, unstack
from optfn.core.transform import Transform
from optfn.core.tree import PyTree, leaf_paths
from optfn.schedules import Schedule, constant
from optfn.testing import problems as problem_set
from optfn.testing import sharding

# In jax 0.7 it is experimental still.
enable_x64 = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]


class NotApplicableError(Exception):
    """Raised by a check that does not apply to this transform; its text says why."""


class Failure(NamedTuple):
    """A failed check, and what it found."""

    check: str
    message: str


class ConformanceError(AssertionError):
    """Lists every check that a transform failed.

    Attributes:
        failures: one `Failure` for each.
    """

    def __init__(self, tx: Any, failures: Sequence[Failure]):
        lines = "".join(f"\n  {f.check}: {f.message}" for f in failures)
        super().__init__(f"{tx!r} fails {len(failures)} checks:{lines}")
        self.failures = tuple(failures)


@dataclass(frozen=True, eq=False)
class Subject:
    """A transform under test, and how to call it.

    Attributes:
        tx: the transform, anything with `init` and `update`.
        extra_args: keyword arguments for every `update`, or a function `(grads, params)` that
            returns them.
        learning_rate: the updates are multiplied by minus this before they are added; None if they
            are ready to be added.
    """

    tx: Any
    extra_args: Mapping[str, Any] | Callable[[PyTree, PyTree], Mapping[str, Any]]
    learning_rate: float | None = None

    def update(self, grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        extra_args = self.extra_args
        given = extra_args(grads, params) if callable(extra_args) else extra_args
        return self.tx.update(grads, state, params, **given)

    def twice(self, tx: Any, grads: PyTree, params: PyTree) -> tuple[PyTree, Any]:
        """The second update of `tx` with the same gradients, and the state after it."""
        one = replace(self, tx=tx)
        _, state = one.update(grads, tx.init(params), params)
        return one.update(grads, state, params)

    def moved(self, params: PyTree, updates: PyTree) -> PyTree:
        """The params after updates."""
        rate = self.learning_rate
        if rate is not None:
            updates = jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)
        return optax.apply_updates(params, updates)

    def step(self, grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        """One training step: new params and state."""
        updates, state = self.update(grads, state, params)
        return self.moved(params, updates), state

    @functools.cached_property
    def donating_step(self) -> Callable[..., Any]:
        """Maps gradients, state and params to updates, new state and new params.

        Compiled once for all checks. State and params are donated.
        """

        def step(grads, state, params):
            updates, state = self.update(grads, state, params)
            return updates, state, self.moved(params, updates)

        return jax.jit(step, donate_argnums=(1, 2))

    def compiled_step(self, grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any, Any]:
        """`donating_step` on copies."""
        return self.donating_step(grads, *_copies((state, params)))

    def compiled_update(self, grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        """Updates and state of `compiled_step`."""
        return self.compiled_step(grads, state, params)[:2]


def check_transform(
    tx: Any,
    *,
    extra_args: Mapping[str, Any] | Callable[[PyTree, PyTree], Mapping[str, Any]] | None = None,
    learning_rate: float | None = None,
    problems: Sequence[problem_set.Problem] = (),
    skip: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Runs every check and reports all that fail.

    Args:
        tx: an optfn transform, an `optax.GradientTransformation`, or any object with `init` and
            `update` of that form.
        extra_args: keyword arguments for every `update`, if it needs any; for trees, a function
            `(grads, params)` that returns them.
        learning_rate: for a stage, whose updates point uphill: checks that train multiply the
            updates by minus this.
        problems: problems of `optfn.testing.problems` on which `tx` must descend; a plain quadratic
            if none are given.
        skip: the names of checks to leave out, each with a reason.

    Returns:
        The outcome of each check by name: "passed", or why it did not run.

    Raises:
        ConformanceError: some checks failed; it lists all of them.
        ValueError: `skip` names an unknown check or gives no reason.
    """
    skip = dict(skip or {})
    for name, reason in skip.items():
        if name not in CHECKS:
            raise ValueError(f"skip names '{name}'; the checks are: {', '.join(CHECKS)}.")
        if not reason:
            raise ValueError(f"skip gives no reason for leaving out '{name}'.")
    subject = Subject(tx, extra_args or {}, learning_rate)
    outcome, failures = {}, []
    for name, check in CHECKS.items():
        if name in skip:
            outcome[name] = f"skipped: {skip[name]}"
            continue
        try:
            if check is check_descends:
                check_descends(subject, problems)
            else:
                check(subject)
            outcome[name] = "passed"
        except NotApplicableError as reason:
            outcome[name] = f"not applicable: {reason}"
        except Exception as error:
            text = " ".join([str(error), *getattr(error, "__notes__", ())])
            text = " ".join(f"{type(error).__name__}: {text}".split())
            failures.append(Failure(name, text[:400]))
    if failures:
        raise ConformanceError(tx, failures)
    return outcome


# Example params and gradients: a matrix, a vector and a scalar, nested.


def example_params(dtype: Any = jnp.float32) -> PyTree:
    """Params of a few shapes; all values are exact in bfloat16."""
    return {
        "layer": {
            "w": jnp.asarray([[1.0, -2.0], [0.5, 0.25], [-1.5, 3.0]], dtype),
            "b": jnp.asarray([0.125, -0.75], dtype),
        },
        "scale": jnp.asarray(2.0, dtype),
    }


def example_grads(params: PyTree, seed: int = 0) -> PyTree:
    """Gradients like `params`, exact in bfloat16; the first entry of every leaf is zero."""
    rng = np.random.default_rng(seed)

    def draw(p):
        g = np.asarray(jnp.asarray(rng.normal(size=p.shape), jnp.bfloat16), np.float64)
        if jnp.iscomplexobj(p):
            g = g * (0.5 + 1j)
        g = g.reshape(-1)
        g[:1] = 0
        return jnp.asarray(g.reshape(p.shape), p.dtype)

    return jax.tree.map(draw, params)


DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float16": (jnp.float16, jnp.float16),
    "bfloat16 params with float32 gradients": (jnp.bfloat16, jnp.float32),
    "float32 params with bfloat16 gradients": (jnp.float32, jnp.bfloat16),
}


# The checks.


def check_fixed_point(subject: Subject) -> None:
    """Structure, shapes, dtypes and weak types of state and updates never change."""
    for name, (p_dtype, g_dtype) in {**DTYPES, "complex64": (jnp.complex64, jnp.complex64)}.items():
        _check_fixed_point(subject, name, example_params(p_dtype), g_dtype)


def check_double_precision(subject: Subject) -> None:
    """The fixed point holds with x64 enabled, for float64 and float32 trees."""
    with enable_x64(True):
        for dtype in (jnp.float64, jnp.float32):
            name = f"{jnp.dtype(dtype)} under x64"
            _check_fixed_point(subject, name, example_params(dtype), dtype)


def _check_fixed_point(subject: Subject, name: str, params: PyTree, g_dtype: Any) -> None:
    grads = jax.tree.map(lambda p: p.astype(g_dtype), params)
    state = jax.eval_shape(subject.tx.init, params)
    updates, after = jax.eval_shape(subject.update, grads, state, params)
    _same_form(state, after, f"{name}: the state after an update")
    _same_form(jax.eval_shape(lambda g: g, grads), updates, f"{name}: the updates")


def check_scan_and_cond(subject: Subject) -> None:
    """The update runs in `lax.scan`, and as a branch of `lax.cond` beside the identity."""
    params = example_params(jnp.bfloat16)  # no other dtype is promoted to it
    grads = example_grads(params)

    def body(carry, take):
        params, state = carry
        updates, state = jax.lax.cond(
            take,
            lambda g, s: subject.update(g, s, params),
            lambda g, s: (g, s),
            grads,
            state,
        )
        return (params, state), updates

    def run(params):
        carry = params, subject.tx.init(params)
        return jax.lax.scan(body, carry, jnp.asarray([True, False, True]))

    jax.eval_shape(run, params)


def check_jit_equals_eager(subject: Subject) -> None:
    """Compiled results equal those computed op by op, up to rounding."""
    params = example_params()
    jitted = jax.jit(subject.tx.init)(params)
    with jax.disable_jit():
        eager = subject.tx.init(params)
    _close(eager, jitted, 0, "the initial state")
    for seed in range(2):
        grads = example_grads(params, seed)
        with jax.disable_jit():
            eager_updates, eager = subject.update(grads, eager, params)
        jitted_updates, jitted = subject.compiled_update(grads, jitted, params)
        _close_runs(
            (eager_updates, eager), (jitted_updates, jitted), params, "of the compiled program"
        )


def check_vmap_equals_loop(subject: Subject) -> None:
    """A batch of runs under `vmap` equals the runs one by one."""
    params = example_params()
    runs = [example_grads(params, seed) for seed in range(2)]

    def run(update, grads):
        _, state = update(grads, subject.tx.init(params), params)
        return update(grads, state, params)

    expected = _stacked([run(subject.compiled_update, grads) for grads in runs])
    with jax.disable_jit():
        got = jax.vmap(functools.partial(run, subject.update))(_stacked(runs))
    _close_runs(expected, got, params, "of the batch")


def check_one_trace(subject: Subject) -> None:
    """New values of the hyperparameters reuse the compiled program."""
    tx = _as_data(subject)
    params = example_params()
    traces = []

    def twice(tx, grads, params):
        traces.append(tx)
        return subject.twice(tx, grads, params)

    # Traced but not compiled: only traces are counted.
    twice = jax.jit(twice)
    for _ in range(3):
        twice.eval_shape(tx, example_grads(params), params)
        tx = jax.tree.map(lambda x: x * 0.5, tx)
    assert len(traces) == 1, f"three values of the hyperparameters took {len(traces)} traces"


def check_schedule_equals_constant(subject: Subject) -> None:
    """Constant schedules in the place of numbers change neither state nor updates."""
    tx = _as_data(subject)
    scheduled = jax.tree.map(
        lambda x: x if isinstance(x, Schedule) else constant(x),
        tx,
        is_leaf=lambda x: isinstance(x, Schedule),
    )
    params = example_params()
    grads = example_grads(params)
    form, form_scheduled = (jax.eval_shape(t.init, params) for t in (tx, scheduled))
    _same_form(form, form_scheduled, "the state with schedules")
    with jax.disable_jit():
        expected, got = (subject.twice(t, grads, params) for t in (tx, scheduled))
    _close(expected, got, 1e-6, "updates or state")


def check_hyperparameters_vmap(subject: Subject) -> None:
    """`vmap` over all hyperparameters at once equals a loop over optimizers."""
    tx = _as_data(subject)
    batch = jax.tree.map(
        lambda x: jnp.multiply.outer(jnp.asarray([0.5, 0.9]), jnp.asarray(x, jnp.float32)), tx
    )
    params = example_params()
    grads = example_grads(params)

    def run(tx):
        return subject.twice(tx, grads, params)

    with jax.disable_jit():
        expected = _stacked([run(one) for one in unstack(batch)])
        got = jax.vmap(run, in_axes=(in_axes(batch),))(batch)
    _close_runs(expected, got, params, "of the batch")


def check_hypergradients(subject: Subject) -> None:
    """Derivatives with respect to hyperparameters are finite, even where a gradient is zero."""
    tx = _as_data(subject)
    params = example_params()
    grads = example_grads(params)

    def total(tx):
        one = replace(subject, tx=tx)
        state, p = tx.init(params), params
        for _ in range(2):
            p, state = one.step(grads, state, p)
        return sum(jnp.sum(x) for x in jax.tree.leaves(p))

    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tx)
    _finite(jax.jit(jax.grad(total))(arrays), "the derivative by the hyperparameters")


def check_zero_gradient(subject: Subject) -> None:
    """Zero gradients give finite updates and state in every dtype."""
    for name, (dtype, g_dtype) in DTYPES.items():
        if dtype != g_dtype:
            continue  # the state and what is computed are those of the wider one
        params = example_params(dtype)
        op_by_op = name != "float32"
        if op_by_op:
            del params["scale"]  # each op is compiled for each shape: a matrix and a vector will do
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = subject.tx.init(params)
        # A compiler may skip roundings to low precision; op by op all of them happen.
        with jax.disable_jit(op_by_op):
            for _ in range(2):
                updates, state = subject.compiled_update(zeros, state, params)
                _finite((updates, state), f"{name}: updates or state")


def check_nan_visible(subject: Subject) -> None:
    """NaN gradients give NaN updates."""
    params = example_params()
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, _ = subject.compiled_update(grads, subject.tx.init(params), params)
    if not any(bool(jnp.isnan(u).any()) for u in jax.tree.leaves(updates)):
        raise AssertionError(f"the updates from NaN gradients are {updates}")


def check_low_precision(subject: Subject) -> None:
    """In bfloat16 and float16 the updates equal the float32 ones, rounded."""
    exact = example_params()
    wide_state, wide_update = subject.tx.init(exact), subject.compiled_update
    expected = []
    for seed in range(3):
        updates, wide_state = wide_update(example_grads(exact, seed), wide_state, exact)
        expected.append(updates)
    for dtype in (jnp.bfloat16, jnp.float16):
        params = example_params(dtype)
        state = subject.tx.init(params)
        # One rounding is half a unit in the last place; the stage may round once more inside.
        tolerance = 2 * float(jnp.finfo(dtype).eps)
        smallest = float(jnp.finfo(dtype).smallest_subnormal)
        for seed in range(3):
            with jax.disable_jit():  # a compiler may skip roundings
                updates, state = subject.update(example_grads(params, seed), state, params)
            _close(expected[seed], updates, tolerance, f"{jnp.dtype(dtype)}: the updates", smallest)


def check_odd_leaves(subject: Subject) -> None:
    """None, 0-d, empty and size-1 leaves work, and so does a tree without leaves."""
    params = {
        "none": None,
        "scalar": jnp.asarray(0.5, jnp.float32),
        "empty": jnp.zeros((0, 3)),
        "one": jnp.ones((1,)),
        "inner": {"nothing": {}, "list": [None, jnp.ones((1, 1))]},
    }
    grads = jax.tree.map(lambda p: 0.1 + jnp.zeros_like(p), params)
    for tree, g in ((params, grads), ({"none": None}, {"none": None}), ({}, {})):
        with jax.disable_jit():
            updates, state = subject.twice(subject.tx, g, tree)
        _same_form(jax.eval_shape(lambda x: x, g), jax.eval_shape(lambda x: x, updates), "updates")
        _finite((updates, state), "updates or state")


def check_tree_layout(subject: Subject) -> None:
    """Nesting and the order of the leaves do not matter."""
    params = example_params()
    grads = example_grads(params)

    def relayout(tree):
        return (tree["scale"], [{"z": tree["layer"]["b"]}, {"a": tree["layer"]["w"]}])

    with jax.disable_jit():
        expected, _ = subject.twice(subject.tx, grads, params)
        got, _ = subject.twice(subject.tx, relayout(grads), relayout(params))
    _close(relayout(expected), got, 1e-6, "the updates")


def check_abstract_init(subject: Subject) -> None:
    """`init` runs on `ShapeDtypeStruct`s, through `eval_shape` and directly."""
    params = example_params(jnp.bfloat16)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    state = jax.eval_shape(lambda s: s, subject.tx.init(params))
    _same_form(state, jax.eval_shape(subject.tx.init, abstract), "eval_shape of init")
    direct = jax.eval_shape(lambda s: s, subject.tx.init(abstract))
    chex.assert_trees_all_equal_structs(state, direct)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, direct)


def check_sharding(subject: Subject) -> None:
    """Slots lie where their params do and stay there, with explicit and with automatic axes."""
    if jax.device_count() < 2:
        raise NotApplicableError("it needs two devices")
    sharding.check(subject)


def check_donation(subject: Subject) -> None:
    """State and params can be donated: no two leaves share a buffer after init or update."""
    params = jax.tree.map(lambda x: x.copy(), example_params())
    grads = example_grads(params)
    state = subject.tx.init(params)
    expected = state, params
    for _ in range(2):
        expected = subject.compiled_step(grads, *expected)[1:]
    for _ in range(2):
        _distinct_buffers((state, params))
        state, params = subject.donating_step(grads, state, params)[1:]
    _close(expected, (state, params), 1e-6, "the result")


def check_resume(subject: Subject) -> None:
    """A run saved to NumPy after any step and restored continues bit for bit."""
    params = example_params()
    grads = [example_grads(params, seed) for seed in range(3)]
    state = subject.tx.init(params)
    saved = []
    for g in grads:
        saved.append([np.array(x) for x in jax.tree.leaves((state, params))])
        _, state, params = subject.compiled_step(g, state, params)
    for start, arrays in enumerate(saved):
        s, p = jax.tree.unflatten(jax.tree.structure((state, params)), map(jnp.asarray, arrays))
        for g in grads[start:]:
            _, s, p = subject.compiled_step(g, s, p)
        chex.assert_trees_all_equal((s, p), (state, params))


def check_round_trip(subject: Subject) -> None:
    """The optimizer is unchanged after flattening and rebuilding, and after pickling."""
    tx = _as_data(subject)
    leaves, treedef = jax.tree.flatten(tx)
    for again in (jax.tree.unflatten(treedef, leaves), _pickled(tx)):
        assert jax.tree.structure(again) == treedef, f"rebuilt it is {again!r}, not {tx!r}"
        chex.assert_trees_all_equal(again, tx)
    hash(treedef)


def check_descends(
    subject: Subject, problems: Sequence[problem_set.Problem] = (), steps: int = 30
) -> None:
    """The value falls on each given problem, or on a quadratic if none are given."""
    for problem in problems or (_QUADRATIC,):
        params = problem.init(jax.random.key(0))
        state = subject.tx.init(params)
        value_and_grad = _value_and_grad(problem.value)
        before, grads = value_and_grad(params)
        after = before
        for _ in range(steps):
            _, state, params = subject.compiled_step(grads, state, params)
            after, grads = value_and_grad(params)
        if not after < before:
            raise AssertionError(
                f"on {problem.name} it went from {before:.6g} to {after:.6g} in {steps} steps"
            )


@functools.lru_cache
def _value_and_grad(value: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(value))


# Its params are those that the update is already compiled for.
_QUADRATIC = replace(
    problem_set.quadratic(),
    init=lambda key: example_params(),
    value=lambda params: sum(jnp.sum((p - 1) ** 2) for p in jax.tree.leaves(params)) / 2,
    minimizer=None,
)


CHECKS: dict[str, Callable[..., Any]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_transform"
}


def _as_data(subject: Subject) -> Transform:
    if not isinstance(subject.tx, Transform):
        raise NotApplicableError("its hyperparameters are no pytree leaves")
    if not jax.tree.leaves(subject.tx):
        raise NotApplicableError("it has no numeric hyperparameters")
    return subject.tx


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _same_form(expected: PyTree, got: PyTree, what: str) -> None:
    """Fails unless structure, shapes, dtypes and weak types of abstract trees agree."""
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise AssertionError(
            f"{what}: structure {jax.tree.structure(got)}, expected {jax.tree.structure(expected)}"
        )
    paths = leaf_paths(expected)
    pairs = zip(paths, jax.tree.leaves(expected), jax.tree.leaves(got), strict=True)
    for path, a, b in pairs:
        if (a.shape, a.dtype, a.weak_type) != (b.shape, b.dtype, b.weak_type):
            raise AssertionError(f"{what}: '{path}' is {_form(b)}, expected {_form(a)}")


def _form(x: Any) -> str:
    return f"{'weak ' if x.weak_type else ''}{x.dtype}{list(x.shape)}"


def _close_runs(
    expected: tuple[Any, ...], got: tuple[Any, ...], params: PyTree, which: str
) -> None:
    """Updates and states are equal but for the order of roundings.

    Updates are added to params, so that what is below a unit in their last place is none.
    """
    _close(expected[0], got[0], 1e-5, f"the updates {which}", _units(params))
    _close(expected[1], got[1], 1e-5, f"the state {which}")


def _units(params: PyTree) -> list[float]:
    """A unit in the last place of each param's largest entry."""
    leaves = map(np.asarray, jax.tree.leaves(params))
    return [float(jnp.finfo(p.dtype).eps * np.abs(p).max()) for p in leaves]


def _close(
    expected: PyTree, got: PyTree, rtol: float, what: str, atol: float | list[float] = 1e-12
) -> None:
    """Leaves are equal up to `rtol` or `atol`, which may be one for each leaf; 0 is to the bit."""
    paths = leaf_paths(expected)
    bounds = atol if isinstance(atol, list) else [atol] * len(paths)
    leaves = jax.tree.leaves(expected), jax.tree.leaves(got)
    for path, a, b, bound in zip(paths, *leaves, bounds, strict=True):
        a, b = np.asarray(a, _comparable(a)), np.asarray(b, _comparable(b))
        with np.errstate(invalid="ignore"):  # inf - inf; equal infinities pass
            scale = np.maximum(np.abs(a), np.abs(b)) * rtol + (bound if rtol else 0)
            near = (np.abs(a - b) <= scale) & np.isfinite(a) & np.isfinite(b)
            off = ~near & ~(np.isnan(a) & np.isnan(b)) & ~(a == b)
        if off.any():
            i = int(np.argmax(off))
            raise AssertionError(
                f"{what} differ at '{path}': {b.reshape(-1)[i]!r}, expected {a.reshape(-1)[i]!r}"
            )


def _comparable(x: Any) -> Any:
    return np.complex128 if jnp.iscomplexobj(x) else np.float64


def _finite(tree: PyTree, what: str) -> None:
    for path, x in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and not bool(jnp.all(jnp.isfinite(x))):
            raise AssertionError(f"{what} not finite at '{path}': {x}")


def _copies(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)


def _distinct_buffers(tree: PyTree) -> None:
    seen: dict[int, str] = {}
    for path, x in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if isinstance(x, jax.Array) and x.size:
            pointer = x.unsafe_buffer_pointer()
            if pointer in seen:
                raise AssertionError(f"'{path}' and '{seen[pointer]}' share one buffer")
            seen[pointer] = path


def _pickled(tx: Any) -> Any:
    try:
        data = pickle.dumps(tx)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotApplicableError(f"it holds a function that cannot be pickled ({error})") from None
    return pickle.loads(data)
