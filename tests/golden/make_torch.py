"""Paths of torch.optim in float64: writes `torch.npz` beside this file (needs PyTorch).

One param of shape (5, 3) takes 50 steps along gradients given beforehand, the same for every
case. They hold what separates the conventions: a first step of size 1e-12, where every eps counts,
single zeros, an entry that is always zero, a step of zeros and a step of size 1e4.

The file holds `p0`, `grads` [50, 5, 3], the params after each step of every case [50, 5, 3], and
`meta`, a JSON string: the versions, and for each case under "cases" the torch call and the call of
`tests/oracles/` that gives the same path.

Where torch's conventions and optax's differ:

- RMSprop: torch divides by sqrt(s) + eps and decays by 0.99; optax divides by sqrt(s + eps), or
  like torch with `eps_in_sqrt=False`, and decays by 0.9. In torch the rate multiplies the momentum
  buffer, in optax it goes into it: the same path only at a constant rate.
- Adagrad: torch divides by sqrt(sum) + eps, with eps 1e-10 and a sum that starts at 0; optax
  divides by sqrt(sum + eps), with eps 1e-7 and 0.1. A zero sum gives a zero step in both, in torch
  because eps is not zero.
- AMSGrad: torch takes the maximum of the raw second moments and corrects its bias afterwards;
  optax corrects first.
- AdamW: the default weight decay is 1e-2 in torch and 1e-4 in optax. Torch shrinks the params by
  1 - lr * weight_decay before the step, optax adds weight_decay * p to the direction: the same up
  to rounding. Adam's `weight_decay` is an L2 penalty in torch: it enters the moments.
- RAdam: torch adds eps to the root before its bias is corrected, optax after; here it is 1e-300,
  so that only the rectification counts.
- Rprop: the same, but for the names: a schedule of the rate has no part in either.
- NAdam: torch lets the momentum grow over time, which optax does not.
- SGD: torch's momentum buffer starts as the first gradient, which is optax's trace from zero. With
  `dampening` the first gradient alone is not damped, so that dampening = momentum is not the
  average b * v + (1 - b) * g from v = 0.
- Complex params: torch treats the real and the imaginary part as two real params, so that each has
  a second moment of its own; optax has one, |g|^2.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch

DATE = "2026-11-22"
STEPS, SHAPE = 50, (5, 3)

CASES = {
    "adam": {
        "optimizer": "Adam",
        "kwargs": {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8},
        "oracle": "adam",
        "oracle_kwargs": {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    },
    "adam_amsgrad": {
        "optimizer": "Adam",
        "kwargs": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "amsgrad": True},
        "oracle": "amsgrad",
        "oracle_kwargs": {
            "lr": 0.01,
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "max_after_correction": False,
        },
    },
    "adamw": {
        "optimizer": "AdamW",
        "kwargs": {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1},
        "oracle": "adamw",
        "oracle_kwargs": {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
    },
    "sgd": {
        "optimizer": "SGD",
        "kwargs": {"lr": 0.1},
        "oracle": "sgd",
        "oracle_kwargs": {"lr": 0.1},
    },
    "sgd_momentum": {
        "optimizer": "SGD",
        "kwargs": {"lr": 0.1, "momentum": 0.9},
        "oracle": "sgd",
        "oracle_kwargs": {"lr": 0.1, "momentum": 0.9},
    },
    "sgd_nesterov": {
        "optimizer": "SGD",
        "kwargs": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        "oracle": "sgd",
        "oracle_kwargs": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    },
    "rmsprop": {
        "optimizer": "RMSprop",
        "kwargs": {"lr": 0.01, "alpha": 0.9, "eps": 1e-8},
        "oracle": "rmsprop",
        "oracle_kwargs": {"lr": 0.01, "decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False},
    },
    "rmsprop_centered": {
        "optimizer": "RMSprop",
        "kwargs": {"lr": 0.01, "alpha": 0.9, "eps": 1e-8, "centered": True},
        "oracle": "rmsprop",
        "oracle_kwargs": {
            "lr": 0.01,
            "decay": 0.9,
            "eps": 1e-8,
            "eps_in_sqrt": False,
            "centered": True,
        },
    },
    "rmsprop_momentum": {
        "optimizer": "RMSprop",
        "kwargs": {"lr": 0.01, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9},
        "oracle": "rmsprop",
        "oracle_kwargs": {
            "lr": 0.01,
            "decay": 0.9,
            "eps": 1e-8,
            "eps_in_sqrt": False,
            "momentum": 0.9,
        },
    },
    "adagrad": {
        "optimizer": "Adagrad",
        "kwargs": {"lr": 0.1, "eps": 1e-10},
        "oracle": "adagrad",
        "oracle_kwargs": {
            "lr": 0.1,
            "initial_accumulator_value": 0.0,
            "eps": 1e-10,
            "eps_in_sqrt": False,
        },
    },
    "adagrad_initial": {
        "optimizer": "Adagrad",
        "kwargs": {"lr": 0.1, "eps": 1e-10, "initial_accumulator_value": 0.1},
        "oracle": "adagrad",
        "oracle_kwargs": {
            "lr": 0.1,
            "initial_accumulator_value": 0.1,
            "eps": 1e-10,
            "eps_in_sqrt": False,
        },
    },
    "adamax": {
        "optimizer": "Adamax",
        "kwargs": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-8},
        "oracle": "adamax",
        "oracle_kwargs": {"lr": 0.01, "b1": 0.9, "b2": 0.99, "eps": 1e-8},
    },
    "radam": {
        "optimizer": "RAdam",
        "kwargs": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-300},
        "oracle": "radam",
        "oracle_kwargs": {"lr": 0.01, "b1": 0.9, "b2": 0.99, "eps": 1e-300},
    },
    "adadelta": {
        "optimizer": "Adadelta",
        "kwargs": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.1},
        "oracle": "adadelta",
        "oracle_kwargs": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.1},
    },
    "rprop": {
        "optimizer": "Rprop",
        "kwargs": {"lr": 0.01, "etas": [0.5, 1.2], "step_sizes": [1e-3, 0.1]},
        "oracle": "rprop",
        "oracle_kwargs": {
            "lr": 0.01,
            "eta_minus": 0.5,
            "eta_plus": 1.2,
            "min_step_size": 1e-3,
            "max_step_size": 0.1,
        },
    },
}


def problem() -> tuple[np.ndarray, np.ndarray]:
    """The initial param and the gradients of all steps, which shrink on the way."""
    rng = np.random.default_rng(0)
    p0 = rng.normal(size=SHAPE)
    grads = rng.normal(size=(STEPS, *SHAPE)) / (1 + np.arange(STEPS) / 10)[:, None, None]
    grads[0] *= 1e-12
    grads[35] *= 1e4
    grads[25] = 0
    grads[rng.uniform(size=grads.shape) < 0.05] = 0
    grads[:, 4, 2] = 0
    return p0, grads


def path(p0: np.ndarray, grads: np.ndarray, optimizer: str, kwargs: dict) -> np.ndarray:
    """The params after each step."""
    p = torch.nn.Parameter(torch.tensor(p0))
    opt = getattr(torch.optim, optimizer)([p], **kwargs)
    params = []
    for g in grads:
        p.grad = torch.tensor(g)
        opt.step()
        params.append(p.detach().numpy().copy())
    return np.stack(params)


def main() -> None:
    """Write `torch.npz` and print the versions."""
    versions = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": DATE,
    }
    p0, grads = problem()
    paths = {name: path(p0, grads, c["optimizer"], c["kwargs"]) for name, c in CASES.items()}
    meta = json.dumps({"cases": CASES, **versions})
    file = Path(__file__).with_name("torch.npz")
    np.savez_compressed(file, p0=p0, grads=grads, meta=np.array(meta), **paths)
    print(file.name, versions)


if __name__ == "__main__":
    main()
