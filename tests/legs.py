"""On which legs each algorithm stands; the README's table is made of this, and tests keep it true."""

from typing import NamedTuple


class Legs(NamedTuple):
    """The evidence for one optimizer function.

    Attributes:
        stages: the stages it is made of, beside weight decay and learning rate.
        oracle: its function in `oracles.py`.
        optax: whether it follows optax's function of that name.
        golden: its trajectories in `golden/torch.npz`.
        claim: a theorem about it.
        theorem: the test of the theorem, in `optimizers/test_theorems.py`.
    """

    stages: tuple[str, ...]
    oracle: str
    optax: bool
    golden: tuple[str, ...]
    claim: str
    theorem: str


LEGS: dict[str, Legs] = {}
