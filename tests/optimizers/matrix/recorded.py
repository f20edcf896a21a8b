"""The recorded paths of the authors' own code and of packages, and optfn's on the same gradients.

`golden/matrix.npz` holds 25 steps in double precision; its `meta` names the calls.
`golden/make_matrix.py` made `golden/matrix_packages.npz`, and says what is in it. A matrix there
has the outputs as rows; here it is a kernel `(in, out)`, as in Flax.
"""

import json
import re
from itertools import accumulate
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import optfn

FOLDER = Path(__file__).parents[2] / "golden"
with np.load(FOLDER / "matrix.npz") as recorded:
    GOLDEN = dict(recorded)
CALLS = json.loads(GOLDEN.pop("meta").item())
SHAPES = ("6x4", "4x6", "5x5")
with np.load(FOLDER / "matrix_packages.npz") as recorded:
    GOLDEN |= dict(recorded)
CASES = json.loads(GOLDEN.pop("meta").item())["cases"]


def shapes_of(record):
    """Of which matrices there are recorded paths."""
    return tuple(
        name.removeprefix(f"{record}/") for name in GOLDEN if name.startswith(f"{record}/")
    )


def _packages():
    """The package of each recorded call; one that names none is of the package before it."""
    named = (re.match(r"[\w-]+/[\w-]+|torch|pytorch_optimizer", call) for call in CALLS.values())
    found = accumulate((match and match[0] for match in named), lambda last, own: own or last)
    return {record: package.replace("_", "-") for record, package in zip(CALLS, found, strict=True)}


PACKAGES = _packages() | {record: case["package"] for record, case in CASES.items()}


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


def with_normals(stage, record):
    """The class of a stage, which draws the normal numbers of a record in the place of its own."""

    def drawing(shape, step):
        recorded = jnp.asarray(GOLDEN[f"normals/{record}/{shape[0]}x{shape[1]}"])[step]

        def draw(key, shape, dtype):
            return (recorded if recorded.shape == shape else recorded.T).astype(dtype)

        return mock.patch.object(jax.random, "normal", draw)

    class WithNormals(stage):
        def init_matrix(self, param):
            with drawing(param.shape, 0):
                return super().init_matrix(param)

        def update_matrix(self, g, slots, param, t, **key):
            with drawing(g.shape, t.astype(int) - 1):
                return super().update_matrix(g, slots, param, t, **key)

    return WithNormals
