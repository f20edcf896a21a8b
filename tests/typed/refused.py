# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What a type checker must refuse: each comment says how, and one without an error is an error."""

import jax
import optax

import optfn
from optfn import schedules

tx = optfn.adam(1e-3)
params = {"w": jax.numpy.ones(3)}
state = tx.init(params)

# Names.
optfn.adam(lr=1e-3)  # pyright: ignore[reportCallIssue]
optfn.adam()  # pyright: ignore[reportCallIssue]
optfn.adamw(1e-3, weight_decays=0.1)  # pyright: ignore[reportCallIssue]
optfn.adma(1e-3)  # pyright: ignore[reportAttributeAccessIssue]
optfn.clip_by_global_norm(max_nrom=1.0)  # pyright: ignore[reportCallIssue]
optfn.accumulate(tx, evry=4)  # pyright: ignore[reportCallIssue]
schedules.linear(0.0, 1.0, transition=10)  # pyright: ignore[reportCallIssue]
tx.initialise(params)  # pyright: ignore[reportAttributeAccessIssue]
at = state.stpe  # pyright: ignore[reportAttributeAccessIssue]

# Stages and optimizers.
optfn.chain("adam")  # pyright: ignore[reportArgumentType]
optfn.chain(optfn.adam)  # pyright: ignore[reportArgumentType]
optfn.chain([tx])  # pyright: ignore[reportArgumentType]
optfn.chain(optax.sgd(0.1), 0.1)  # pyright: ignore[reportArgumentType]
optfn.partition([tx], "all")  # pyright: ignore[reportArgumentType]
optfn.partition({"all": optfn.adam}, "all")  # pyright: ignore[reportArgumentType]
optfn.accumulate(optfn.adam, 4)  # pyright: ignore[reportArgumentType]
optfn.skip_nonfinite(0.1)  # pyright: ignore[reportArgumentType]
optfn.masked(optfn.clip, True)  # pyright: ignore[reportArgumentType]
optfn.lookahead({"w": 1.0}, 5, 0.5)  # pyright: ignore[reportArgumentType]
optfn.monitor(None)  # pyright: ignore[reportArgumentType]
optfn.sam(tx, "sgd")  # pyright: ignore[reportArgumentType]
optax.chain(optfn.adam)  # pyright: ignore[reportArgumentType]

# Switches and results.
optfn.adam(1e-3, nesterov="yes")  # pyright: ignore[reportArgumentType]
optfn.sgd(0.1, nesterov=0.9)  # pyright: ignore[reportArgumentType]
updates: int = tx.init(params)  # pyright: ignore[reportAssignmentType]
a, b, c = tx.update(params, state)  # pyright: ignore[reportAssignmentType]
tx.update(params)  # pyright: ignore[reportCallIssue]
optfn.step(tx, params, state)  # pyright: ignore[reportCallIssue]
optfn.hyperparameters("adam", state)  # pyright: ignore[reportArgumentType]
wrong: optfn.State = optfn.hyperparameters(tx, state)  # pyright: ignore[reportAssignmentType]
