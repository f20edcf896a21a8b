"""One training run, as its author sees it."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

import optfn
from optfn.core.numerics import all_finite
from optfn.core.signatures import names_taken, parameters_of
from optfn.core.state import State
from optfn.core.transform import Transform
from optfn.core.tree import PyTree, describe, location_of, mismatch
from optfn.sweep.candidate import Candidate


class Model(NamedTuple):
    """What is scored and kept of a run.

    Attributes:
        params: the params.
        state: the model's own state, as the running averages of batch norm; None without one.
    """

    params: PyTree
    state: PyTree = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What `Task` and `TrainingLoop` have in common: the source of batches, and the score.

    Hyperparameters that a function of the task takes as keyword-only arguments can be searched like
    those of the optimizer: a dropout rate, label smoothing, an initial scale. They are traced
    numbers in one program.

    Args:
        data: a pytree of arrays `[examples, ...]`, an argument of the program, held once for all
            lanes.
        batch_size: the examples of a batch, of which each comes once an epoch, in another order
            each time; None is all of them, in order. An epoch that is not a whole number of batches
            ends inside of one, with which the next begins.
        replacement: whether examples are drawn anew for each batch, with replacement, so that an
            epoch may have some twice and others not at all.
        batch: `batch(key, data) -> batch`, instead of drawing examples.
        common_batches: whether all lanes see the same batch in a step, which is cheaper; a trial
            then depends on when it got its lane. By default a run's batches depend on its seed and
            step alone.
        stream: batches from the host, instead of data: `stream(step) -> batch`, or an iterable of
            batches, which is restarted when it ends and for every sweep, so not a generator.
            Batches are common to all lanes, and all have the same shapes.
        held_out: a pytree of arrays, the last argument of `evaluate`. It is also held once; arrays
            that a function closes over would become part of the program.
        host_evaluate: any Python that scores one run on the host, such as a metric of scikit-learn
            or the generation of a text: `host_evaluate(params) -> dict` of numbers, or one number,
            the score that `minimize` or `maximize` names. It gets the model as `evaluate` does, in
            NumPy arrays, after every segment. The devices wait meanwhile, run by run: use
            `evaluate` where JAX can. An error of it fails the trial, see `run(catch=...)`. With
            several processes each calls it, and must get the same.
        minimize: the name of the score, where lower is better: a result of `evaluate` or
            `host_evaluate`, a metric of the training, or by default "loss", the mean training loss
            of a segment.
        maximize: the name of the score where higher is better, instead of `minimize`.
    """

    data: PyTree = None
    batch_size: int | None = None
    replacement: bool = False
    batch: Callable[..., PyTree] | None = None
    common_batches: bool = False
    stream: Callable[[int], PyTree] | Iterable[PyTree] | None = None
    evaluate: Callable[..., dict[str, Any]] | None = None
    held_out: PyTree = None
    host_evaluate: Callable[..., Any] | None = None
    minimize: str | None = None
    maximize: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "evaluate", "host_evaluate"):
            _check_function(self, name, optional=True)
        name = type(self).__name__
        if self.minimize is not None and self.maximize is not None:
            raise ValueError(f"{name}(...) has one score: give minimize or maximize, not both.")
        if self.stream is not None:
            if not (callable(self.stream) or isinstance(self.stream, Iterable)):
                raise TypeError(
                    f"{name}(stream=...) must be a function of the step or an iterable of batches, "
                    f"found {self.stream!r}."
                )
            if hasattr(self.stream, "__next__"):
                raise TypeError(
                    f"{name}(stream=...) cannot be restarted: give a function of the step, or an "
                    "iterable that starts again with each iter(), as a list or a loader does, "
                    f"instead of the iterator {self.stream!r}."
                )
            for other in ("data", "batch_size", "batch"):
                if getattr(self, other) is not None:
                    raise ValueError(f"{name}(stream=...) gives whole batches; leave {other} out.")
        if self.batch_size is None:
            if self.replacement:
                raise ValueError(f"{name}(replacement=True) needs a batch_size.")
            return
        if self.batch is not None:
            raise ValueError(f"{name}(...): batch draws its own examples; leave batch_size out.")
        count = self.number_of_examples()
        if not isinstance(self.batch_size, int) or not 1 <= self.batch_size <= count:
            raise ValueError(
                f"{name}(batch_size=...) must be a whole number from 1 to the {count} examples of "
                f"the data, found {self.batch_size!r}."
            )

    @property
    def objective(self) -> str:
        """The name of the score."""
        return self.maximize or self.minimize or "loss"

    @property
    def sign(self) -> int:
        """The factor of the score that makes lower better: 1 or -1."""
        return 1 if self.maximize is None else -1

    def number_of_examples(self) -> int:
        """How many examples the data has."""
        sizes = {jnp.shape(x)[0] if jnp.ndim(x) else 0 for x in jax.tree.leaves(self.data)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"{type(self).__name__}(data=...) must be arrays with the same number of examples "
                f"in front, found {sorted(sizes) or 'none'}."
            )
        return sizes.pop()

    @property
    def has_epochs(self) -> bool:
        """Whether every example comes once an epoch."""
        return self.batch_size is not None and not self.replacement

    def whole_batch(self, key: jax.Array, data: PyTree, values: Mapping[str, Any]) -> PyTree:
        """A batch where no examples are drawn: that of `batch`, or all of the data."""
        return data if self.batch is None else self._call("batch", values, key, data)

    @property
    def initial_params(self) -> PyTree:
        """What every run starts from, as `init` gives it; None where each makes its own."""
        return None

    @cached_property
    def without_arrays(self) -> Self:
        """What compiled programs keep of the task: its functions without its arrays."""
        functions = copy(self)
        arrays = ["data", "held_out", "stream", "host_evaluate"]
        if self.initial_params is not None:
            arrays.append("init")
        for name in arrays:
            object.__setattr__(functions, name, None)
        return functions

    # Whether lanes keep the params of their best score on the way.
    keeps_best: ClassVar[bool] = False

    @cached_property
    def keeping_best(self) -> Self:
        """As `without_arrays`, for lanes that keep the params of their best score on the way."""
        functions = copy(self.without_arrays)
        object.__setattr__(functions, "keeps_best", True)
        return functions

    # The names of the functions that take hyperparameters as keyword-only arguments.
    functions: ClassVar[tuple[str, ...]] = ("init", "batch", "evaluate", "host_evaluate")

    @cached_property
    def names_by_function(self) -> dict[str, dict[str, bool]]:
        """For each function of the task, by name whether it needs the hyperparameter."""
        found = {}
        for name in self.functions:
            function: Any = getattr(self, name, None)
            named = names_taken(function, keyword_only=True)[0] if _is_function(function) else {}
            found[name] = {n: needed for n, needed in named.items() if n != "key"}
        return found

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names of the hyperparameters that the task's functions take."""
        return tuple(dict.fromkeys(n for own in self.names_by_function.values() for n in own))

    def check_needed(self, names: Collection[str]) -> None:
        """Raises unless the space has every hyperparameter that a function needs."""
        for function, own in self.names_by_function.items():
            for name, needed in own.items():
                if needed and name not in names:
                    raise TypeError(
                        f"{type(self).__name__}({function}=...) needs the keyword-only argument "
                        f"{name!r}, which the space does not have."
                    )

    def _call(self, name: str, values: Mapping[str, Any], *args: Any, **more: Any) -> Any:
        """Calls a function of the task with those hyperparameters that it takes."""
        own = {n: values[n] for n in self.names_by_function[name] if n in values}
        return getattr(self, name)(*args, **more, **own)

    def begin(self, candidate: Candidate, key: jax.Array, initial_params: PyTree) -> PyTree:
        """The carry of a run before its first step."""
        raise NotImplementedError

    def advance(
        self, candidate: Candidate, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        """The carry after a step, and scalars to record; a bad "loss" ends the run as diverged."""
        raise NotImplementedError

    def scored_model(self, tx: Transform, carry: PyTree) -> Model:
        """The params that are scored and kept, and the model's state."""
        raise NotImplementedError

    def is_finite(self, carry: PyTree) -> jax.Array:
        """Whether the trained params are finite."""
        raise NotImplementedError

    def score(self, candidate: Candidate, carry: PyTree, held_out: PyTree) -> dict[str, jax.Array]:
        """The results of `evaluate`."""
        if self.evaluate is None:
            return {}
        others = () if held_out is None else (held_out,)
        model = self._arguments(self.scored_model(candidate.tx, carry))
        metrics = self._call("evaluate", candidate.task, *model, *others)
        _check_scalars(metrics, f"{type(self).__name__}(evaluate=...)")
        return metrics

    def score_on_host(
        self, values: Mapping[str, Any], model: Model, others: Collection[str]
    ) -> dict[str, float]:
        """The results of `host_evaluate`.

        Args:
            values: the task's hyperparameters, numbers of one run.
            model: what is scored, arrays `[...]` of one run on the host.
            others: the names of the scores that the program has given.
        """
        where = f"{type(self).__name__}(host_evaluate=...)"
        found = self._call("host_evaluate", values, *self._arguments(model))
        if not isinstance(found, Mapping):
            found = {self.maximize or self.minimize: found}
        for name, value in found.items():
            if name is None or isinstance(value, str) or np.ndim(value) != 0:
                raise TypeError(
                    f"{where} must give a dict of numbers, or one number whose name is given by "
                    f"minimize or maximize, found {value!r:.60} by the name {name!r}."
                )
        check_new_names(where, found, others)
        if self.objective not in (*others, *found):
            raise ValueError(
                f"{where} must give the score {self.objective!r}, found "
                f"{', '.join(map(str, found))}."
            )
        return {str(name): float(value) for name, value in found.items()}

    def _arguments(self, model: Model) -> tuple[PyTree, ...]:
        """The model as the functions of the task take it."""
        return (model.params,)


@dataclass(frozen=True, eq=False)
class Task(Training):
    """One training run with a loss; a sweep makes many such runs.

        task = Task(init, loss, data=(x, y), batch_size=64, evaluate=evaluate, maximize="accuracy")

    Its functions see one run only; the sweep runs them for many lanes in one program. Keep the
    object: sweeps of the same task share their compiled programs. For a custom training step, see
    `TrainingLoop`.

    Args:
        init: `init(key) -> params`, or a pytree of arrays, the params that every run starts from. A
            callable that holds arrays is such a tree; of an Equinox module, give the arrays
            (`eqx.partition`). With `has_state`, a pair of params and model state.
        loss: `loss(params, batch)`, or with a parameter named key `loss(params, batch, *, key)`,
            returns a scalar, float32 or wider, or a pair of it and a dict of scalars to record,
            none of them named "loss". With `has_state`, `loss(params, model_state, batch)` returns
            the scalar and the new model state, or these two and the dict.
        evaluate: `evaluate(params) -> dict` of scalars, called after every segment with the params
            of `optfn.evaluation_params`; with `held_out`, `evaluate(params, held_out)`. With
            `has_state`, the model state comes after the params.
        has_state: whether the model has a state that is not trained but changes in every step, as
            the running averages of batch norm, counters, or keys that an NNX model draws by. It
            keeps its structure, shapes and dtypes. A step that a line search only tries leaves it
            as it is. Of an optimizer that averages the params it is that of the last step.
        data, batch_size, replacement, batch, common_batches, stream, held_out, host_evaluate,
            minimize, maximize: see `Training`.

    Raises:
        TypeError: `loss` is not a function, `init` neither a function nor arrays; the stream cannot
            be restarted; with `has_state`, `init` or `loss` gives no model state.
        ValueError: both `minimize` and `maximize`; a batch size without data, or above the number
            of examples; a stream with data; the model state changes its structure.
    """

    init: Callable[..., PyTree] | PyTree
    loss: Callable[..., Any]
    has_state: bool = field(default=False, kw_only=True)

    functions = ("init", "loss", "batch", "evaluate", "host_evaluate")

    def __post_init__(self) -> None:
        _check_function(self, "loss")
        if not _is_function(self.init):
            self._model(self.init)
            for path, leaf in jax.tree.leaves_with_path(self.init):
                if not _is_array(leaf) and not isinstance(leaf, (bool, int, float, complex)):
                    raise TypeError(
                        "Task(init=...) must be a function of a key or a tree of arrays, found "
                        f"{leaf!r} {location_of(path)}. Of an Equinox module, give the arrays, "
                        "eqx.partition(module, eqx.is_array)[0]."
                    )
        super().__post_init__()

    @property
    def initial_params(self) -> PyTree:
        return None if _is_function(self.init) else self.init

    def begin(self, candidate: Candidate, key: jax.Array, initial_params: PyTree) -> PyTree:
        given = not _is_function(self.init)
        model = self._model(initial_params if given else self._call("init", candidate.task, key))
        return model.params, candidate.tx.init(model.params), model.state

    def _model(self, made: Any) -> Model:
        """The model as `init` gives it."""
        if not self.has_state:
            return Model(made)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                "Task(init=...) must give a pair (params, model_state) with has_state=True, found "
                f"{describe(made)}."
            )
        return Model(*made)

    def advance(
        self, candidate: Candidate, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        tx, (params, state, model_state) = candidate.tx, carry

        def loss_of(params):
            # A copy, since it may change in place: Flax's variables may only where they were made.
            model = Model(params, jax.tree.map(lambda x: x, model_state))
            loss, *others = self._loss(model, batch, key, candidate.task)
            return loss, others

        (loss, (new_state, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        offered = {
            "value": loss,
            "grad": grads,
            "value_fn": lambda params: loss_of(params)[0],
            "obj_fn": lambda params: loss_of(params)[0],
        }
        extra = {name: offered[name] for name in tx.declared_extra_args() if name in offered}
        params, state = optfn.step(tx, params, grads, state, **extra)
        return (params, state, new_state), {"loss": loss, **metrics}

    def scored_model(self, tx: Transform, carry: PyTree) -> Model:
        params, state, model_state = carry
        return Model(optfn.evaluation_params(tx, state, params), model_state)

    def is_finite(self, carry: PyTree) -> jax.Array:
        return all_finite(carry[0])

    def _arguments(self, model: Model) -> tuple[PyTree, ...]:
        return model if self.has_state else (model.params,)

    def _loss(
        self, model: Model, batch: PyTree, key: jax.Array, values: Mapping[str, Any]
    ) -> tuple[Any, PyTree, dict[str, Any]]:
        """The loss of a batch, the model's new state, and what is to be recorded."""
        names = {x.name for x in parameters_of(self.loss) or []}
        wants_key = {"key": key} if "key" in names else {}
        result = self._call("loss", values, *self._arguments(model), batch, **wants_key)
        result = result if isinstance(result, tuple) else (result,)
        if self.has_state:
            if len(result) < 2:
                raise TypeError(
                    "Task(loss=...) must give (loss, model_state) or (loss, model_state, metrics) "
                    "with has_state=True, found the loss alone."
                )
            result, state = (result[0], *result[2:]), result[1]
            _check_form(state, model.state)
        else:
            state = None
        loss, metrics = result if len(result) > 1 else (*result, {})
        _check_scalars(metrics, "Task(loss=...)")
        if "loss" in metrics:
            raise ValueError(
                "Task(loss=...) must give scalars to record with other names than 'loss', which is "
                "the loss itself."
            )
        _check_scalars({"loss": loss}, "Task(loss=...)")
        return loss, state, metrics


@dataclass(frozen=True, eq=False)
class TrainingLoop(Training):
    """One training run with a custom step: several losses, several optimizers, any carry.

        loop = TrainingLoop(init, step, params=lambda carry: carry.params, ...)

    Args:
        init: `init(tx, key) -> carry`, a pytree of arrays, the optimizer's state among them.
        step: `step(tx, carry, batch, key) -> (carry, metrics)`, with metrics a dict of scalars. If
            one is named "loss", a run diverges when it is not finite or above `max_loss`.
        params: `params(carry) -> params`, those at which gradients are taken, which must stay
            finite. They are evaluated and kept, or in their place what `optfn.evaluation_params`
            gives where the carry has one state of the optimizer for such params. None evaluates and
            keeps the whole carry as it is and does not check that it is finite.
        evaluate: `evaluate(params) -> dict` of scalars, after every segment; with `held_out`,
            `evaluate(params, held_out)`.
        data, batch_size, replacement, batch, common_batches, stream, held_out, host_evaluate,
            minimize, maximize: see `Training`.

    Raises:
        TypeError: an argument that must be a function is not.
        ValueError: as `Task`.
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, dict[str, Any]]]
    params: Callable[[PyTree], PyTree] | None = None

    functions = ("init", "step", "batch", "evaluate", "host_evaluate")

    def __post_init__(self) -> None:
        _check_function(self, "init")
        _check_function(self, "step")
        _check_function(self, "params", optional=True)
        super().__post_init__()

    def begin(self, candidate: Candidate, key: jax.Array, initial_params: PyTree) -> PyTree:
        return self._call("init", candidate.task, candidate.tx, key)

    def advance(
        self, candidate: Candidate, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        carry, metrics = self._call("step", candidate.task, candidate.tx, carry, batch, key)
        _check_scalars(metrics, "TrainingLoop(step=...)")
        return carry, metrics

    def scored_model(self, tx: Transform, carry: PyTree) -> Model:
        if self.params is None:
            return Model(carry)
        return Model(_averaged(tx, carry, self.params(carry)))

    def is_finite(self, carry: PyTree) -> jax.Array:
        return jnp.asarray(True) if self.params is None else all_finite(self.params(carry))


def _averaged(tx: Transform, carry: PyTree, params: PyTree) -> PyTree:
    """The params to evaluate, by the state of the optimizer that the carry has for them."""

    def form(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    try:
        fitting = jax.eval_shape(tx.init, params)
    except Exception:  # the optimizer trains something else, as a part of these
        return params
    nodes = jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, State))
    states = [node for node in nodes if isinstance(node, State) and form(node) == form(fitting)]
    if len(states) == 1:
        return optfn.evaluation_params(tx, states[0], params)
    program = jax.make_jaxpr(partial(optfn.evaluation_params, tx))(fitting, params).jaxpr
    if not all(any(out is given for given in program.invars) for out in program.outvars):
        warnings.warn(
            "TrainingLoop(params=...): the optimizer has other params to evaluate than those it "
            f"trains, but the carry has {len(states)} states of it for them, instead of one: the "
            "trained params are scored.",
            stacklevel=2,
        )
    return params


def check_new_names(where: str, names: Collection[str], known: Collection[str]) -> None:
    """Raises if scores that a function of the task gives have the names of others."""
    if both := sorted(set(names) & set(known)):
        raise ValueError(
            f"{where} must give names that no other score has, found {', '.join(both)} in both."
        )


def _is_function(init: Any) -> bool:
    """Whether `init` makes params; a callable that holds arrays is itself the params."""
    made_of = jax.tree.leaves(init)
    return callable(init) and (isinstance(init, partial) or not any(map(_is_array, made_of)))


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def _check_form(new: PyTree, old: PyTree) -> None:
    """Raises unless the new model state can take the place of the old one."""
    differ = mismatch(new, old, "the new one", "the old one")
    if differ is None and jax.tree.structure(new) != jax.tree.structure(old):
        differ = "they differ in static parts"
    for (path, x), y in zip(jax.tree.leaves_with_path(new), jax.tree.leaves(old), strict=False):
        x = jnp.asarray(x)
        if differ is None and (x.shape, x.dtype) != (y.shape, y.dtype):
            found, wanted = (f"{z.dtype}{list(z.shape)}" for z in (x, y))
            differ = f"{location_of(path)} the new one has {found}, the old one {wanted}"
    if differ:
        raise ValueError(
            f"Task(loss=...) must give a model state of the form that it was given: {differ}."
        )


def _check_function(task: Training, name: str, *, optional: bool = False) -> None:
    value = getattr(task, name)
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{type(task).__name__}({name}=...) must be a function, found {value!r}.")


def _check_scalars(metrics: Any, where: str) -> None:
    if not isinstance(metrics, dict):
        raise TypeError(f"{where} must give a dict of scalars, found {type(metrics).__name__}.")
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"{where} must give scalars, found {name!r} with shape {jnp.shape(value)}."
            )
