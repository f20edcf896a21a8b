"""A transform is optax's own type, and its state answers to optax's names."""

import copy
import inspect
import operator
import pickle
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import optfn
from optfn.core.optax_fields import ELSEWHERE

EVERY = cases.OPTIMIZERS | cases.STAGES
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


# The type.


@pytest.mark.parametrize("name", EVERY)
def test_it_is_a_pair_of_optaxs(name):
    tx = EVERY[name]
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(tx) is tx
    init, update = tx
    assert (init, update) == (tx.init, tx.update) == (tx[0], tx[1]) == tuple(tx)
    assert len(tx) == 2
    assert tx[::-1] == (update, init)
    assert tx._asdict() == {"init": init, "update": update}
    changed = tx._replace(update=None)
    assert type(changed) is optax.GradientTransformationExtraArgs
    assert changed.init == init
    assert changed.update is None


@pytest.mark.parametrize("name", EVERY)
def test_it_is_equal_to_itself_alone(name):
    tx = EVERY[name]
    again = jax.tree.map(lambda x: x, tx)
    assert operator.eq(tx, tx)
    assert not operator.ne(tx, tx)
    assert tx != again
    assert len({tx, again, tx}) == 2
    for order in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            order(tx, again)
    assert copy.copy(tx) is tx
    assert copy.deepcopy({"tx": tx})["tx"] is tx
    assert jax.tree.structure(again) == jax.tree.structure(tx)


@pytest.mark.parametrize("tx", [optfn.adamw(0.1), optfn.sgd(0.1, 0.9)], ids=["adamw", "sgd"])
def test_it_pickles(tx):
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == repr(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)


def test_a_tree_of_optimizers_can_be_cut_at_optaxs_type():
    tree = {"a": optfn.adam(0.1), "b": optax.sgd(0.1)}

    def is_optimizer(x):
        return isinstance(x, optax.GradientTransformation)

    assert jax.tree.leaves(tree, is_leaf=is_optimizer) == [tree["a"], tree["b"]]


@pytest.mark.newest
@pytest.mark.parametrize("name", EVERY)
def test_extra_args_that_it_does_not_declare_are_ignored(name):
    tx = EVERY[name]
    extra_args = cases.EXTRA_ARGS.get(name, {})
    if callable(extra_args):
        extra_args = extra_args(PARAMS, PARAMS)
    strange = {"whatever": 1.0, "batch_stats": object(), "grad_fn": lambda x: x}
    state = jax.eval_shape(tx.init, PARAMS)
    update = partial(tx.update, **extra_args, **strange)
    assert jax.eval_shape(update, PARAMS, state, PARAMS)[1] == state


def test_a_deep_copy_of_an_nnx_optimizer_runs_the_same_program():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optfn.adam(0.1), wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(model, optimizer):
        nonlocal traces
        traces += 1
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 3)))))(model))

    step(model, optimizer)
    again = copy.deepcopy((model, optimizer))
    assert nnx.graphdef(again) == nnx.graphdef((model, optimizer))
    step(*again)
    assert traces == 1


# The state.


def fields_of(state):
    """All names of fields in a state of optax's."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return set(state._fields).union(*map(fields_of, state))
    if isinstance(state, (tuple, list)):
        return set().union(*map(fields_of, state))
    return set()


GIVEN = {
    "learning_rate": 0.1,
    "decay": 0.9,
    "max_learning_rate": 1.0,
    "max_linesearch_steps": 5,
    "max_backtracking_steps": 5,
}
# Without an entry in the state, it cannot know.
NO_SLOTS = {("noisy_sgd", "rng_key"), ("hutchinson_estimator_diag_hessian", "key")}
TWICE = {"trace", "ema"}  # a stage's name and its slot's


def state_of(library, name):
    function = getattr(library, name, None) or getattr(optax.contrib, name)
    arguments = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            if parameter.name in ("base_optimizer", "fast_optimizer"):
                arguments[parameter.name] = library.sgd(0.1, momentum=0.9)
            else:
                arguments.setdefault(parameter.name, GIVEN[parameter.name])
    return function(**arguments).init(PARAMS)


def both_states():
    for name in sorted(optfn.__all__ if hasattr(optfn, "__all__") else dir(optfn)):
        if not callable(getattr(optfn, name, None)):
            continue
        if not hasattr(optax, name) and not hasattr(optax.contrib, name):
            continue
        try:
            ours, theirs = state_of(optfn, name), state_of(optax, name)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue  # no factory of an optimizer or a stage
        yield name, ours, theirs


@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
def test_optaxs_names_are_found_in_the_state_or_raise():
    asked, nothing, raised = 0, set(), set()
    for name, ours, theirs in both_states():
        for field in fields_of(theirs):
            try:
                if optax.tree.get(theirs, field) is None:
                    continue
            except KeyError:
                continue
            asked += 1
            try:
                if optax.tree.get(ours, field) is None:
                    nothing.add((name, field))
            except KeyError:
                raised.add(field)
    assert asked > 250
    assert nothing == NO_SLOTS
    known = {field for others in ELSEWHERE.values() for field in others}
    assert raised <= known | TWICE
    assert "count" not in raised


def test_the_count_can_be_set_and_says_where_a_name_went():
    state = optfn.prodigy().init(PARAMS)
    assert optax.tree.set(state, count=jnp.int32(7)).step == 7
    assert state._replace(step=3) == state._replace(count=3)
    with pytest.raises(KeyError, match=r"no 'estim_lr': what optax calls so is here 'distance'"):
        optax.tree.get(state, "estim_lr")
    with pytest.raises(AttributeError, match="the state has no 'exp'"):
        _ = state.exp
    assert pickle.loads(pickle.dumps(state)).step == 0
    # A name that another part of the state has, and a stage without it, do not raise.
    other = optax.chain(optfn.sgd(0.1), optax.contrib.prodigy()).init(PARAMS)
    assert optax.tree.get(other, "estim_lr") is not None


@pytest.mark.parametrize("library", [optax, optfn], ids=["optax", "optfn"])
def test_optaxs_loop_of_lbfgs_runs_as_it_stands(library):
    def fun(w):
        return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2)

    tx = library.lbfgs()
    value_and_grad = library.value_and_grad_from_state(fun)

    def should_continue(carry):
        _, state = carry
        count = optax.tree.get(state, "count")
        error = optax.tree.norm(optax.tree.get(state, "grad"))
        return (count == 0) | ((count < 100) & (error >= 1e-3))

    def step(carry):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        return library.apply_updates(params, updates), state

    loop = jax.jit(partial(jax.lax.while_loop, should_continue, step))
    start = jnp.zeros(4)
    np.testing.assert_allclose(loop((start, tx.init(start)))[0], np.ones(4), atol=1e-3)
