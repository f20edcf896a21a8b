"""The recorded paths of the authors' own code, and optfn's on the same gradients.

`golden/matrix.npz` holds 25 steps in double precision; its `meta` names the calls. A matrix there
has the outputs as rows; here it is a kernel `(in, out)`, as in Flax.
"""

import json
import re
from itertools import accumulate
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import optfn

with np.load(Path(__file__).parents[2] / "golden" / "matrix.npz") as recorded:
    GOLDEN = dict(recorded)
CALLS = json.loads(GOLDEN.pop("meta").item())
SHAPES = ("6x4", "4x6", "5x5")


def _packages():
    """The package of each recorded call; one that names none is of the package before it."""
    named = (re.match(r"[\w-]+/[\w-]+|torch|pytorch_optimizer", call) for call in CALLS.values())
    found = accumulate((match and match[0] for match in named), lambda last, own: own or last)
    return {record: package.replace("_", "-") for record, package in zip(CALLS, found, strict=True)}


PACKAGES = _packages()


def optimizer_of(record):
    """optfn's name of what was recorded, as `"muon"` of `"muon_torch"`."""
    names = (record.rsplit("_", n)[0] for n in range(record.count("_") + 1))
    return next(name for name in names if hasattr(optfn, name))


def problem(shape):
    """The first matrix and the gradients of all steps."""
    return GOLDEN[f"p0/{shape}"], GOLDEN[f"grads/{shape}"]


def path(tx, p0, grads):
    """The matrix after each step of an optimizer, which is an argument of the program."""
    found = _path(tx, {"kernel": jnp.asarray(p0)}, {"kernel": jnp.asarray(grads)})
    return np.asarray(found["kernel"])


def paths(tx, shapes=SHAPES):
    """The paths from several first matrices, in one program: each is `shape/kernel`."""
    p0, grads = (
        {shape: {"kernel": jnp.asarray(problem(shape)[i])} for shape in shapes} for i in (0, 1)
    )
    return {shape: np.asarray(x["kernel"]) for shape, x in _path(tx, p0, grads).items()}


@jax.jit
def _path(tx, p0, grads):
    def turned(tree):
        return jax.tree.map(lambda x: x.T, tree)

    def step(carry, g):
        params, state = optfn.step(tx, carry[0], turned(g), carry[1])
        return (params, state), turned(params)

    params = turned(p0)
    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def assert_on_path(found, wanted, p0, tolerance=1e-11):
    """Within a share of the length of the path, which is the sum of all that was rounded on it."""
    steps = abs(np.diff(wanted, axis=0, prepend=p0[None]))
    bound = tolerance * (abs(p0) + np.cumsum(steps, axis=0))
    np.testing.assert_array_less(abs(found - wanted), bound)
