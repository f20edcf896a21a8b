"""Paths of the authors' and of other packages in float64: writes `packages.npz` beside this file.

It needs PyTorch and the packages in `PACKAGES`. The problem and the file are those of
`make_torch.py`, but for "package" in each case. Only what follows the conventions of optfn, up to
rounding, is here. What does not, and why:

- The updates of Prodigy and D-Adaptation correct the bias only where `use_bias_correction` is set.
- The weights of Schedule-Free's average come from the rate of the step itself; its warm-up starts
  at 1 / warmup_steps of the rate, not at zero.
- pytorch-optimizer: RAdam adds eps before the bias is corrected, LaProp 1e-15 under the root. Its
  Lamb, ADOPT and SM3 follow other conventions than the packages that are here for them.

timm keeps the sum of LaProp's weights in float32: that path is exact to 1e-7 only.
"""

import importlib
import importlib.metadata
import json
import platform
from pathlib import Path

import numpy as np
import torch
from make_torch import problem

DATE = "2026-11-23"
PACKAGES = {
    "schedulefree": "schedulefree",
    "prodigyopt": "prodigyopt",
    "dadaptation": "dadaptation",
    "torch-optimi": "optimi",
    "lion-pytorch": "lion_pytorch",
    "pytorch-optimizer": "pytorch_optimizer",
    "timm": "timm.optim",
    "qhoptim": "qhoptim.pyt",
    "torch-SM3": "SM3",
    "adam-mini": "adam_mini",
}
WARMED_UP = [0.1 * min(1.0, (t + 1) / 5) for t in range(50)]

# package, class, its arguments, the oracle, its arguments
CASES = {
    "schedule_free_sgd": (
        *("schedulefree", "SGDScheduleFree"),
        {"lr": 0.1, "momentum": 0.9, "warmup_steps": 5, "weight_decay": 0.1},
        "schedule_free_sgd",
        {"lr": WARMED_UP, "b1": 0.9, "weight_decay": 0.1},
    ),
    "schedule_free_adamw": (
        *("schedulefree", "AdamWScheduleFree"),
        {"lr": 0.1, "betas": [0.9, 0.99], "warmup_steps": 5, "weight_decay": 0.1},
        "schedule_free_adamw",
        {"lr": WARMED_UP, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
    ),
    "prodigy": (
        *("prodigyopt", "Prodigy"),
        {"lr": 1.0, "use_bias_correction": True, "weight_decay": 0.1},
        "prodigy",
        {"lr": 1.0, "weight_decay": 0.1},
    ),
    "prodigy_safeguard": (
        *("prodigyopt", "Prodigy"),
        {
            **{"lr": 1.0, "use_bias_correction": True, "safeguard_warmup": True},
            **{"beta3": 0.9, "d_coef": 2.0, "d0": 1e-4},
        },
        "prodigy",
        {
            **{"lr": 1.0, "safeguard_warmup": True},
            **{"beta3": 0.9, "estim_lr_coef": 2.0, "estim_lr0": 1e-4},
        },
    ),
    "dadapt_adamw": (
        *("dadaptation", "DAdaptAdam"),
        {"lr": 1.0, "use_bias_correction": True, "decouple": True, "weight_decay": 0.1},
        "dadapt_adamw",
        {"lr": 1.0, "weight_decay": 0.1},
    ),
    "lion": (
        *("lion-pytorch", "Lion"),
        {"lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "lion",
        {"lr": 0.01, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
    ),
    "stable_adamw": (
        *("torch-optimi", "StableAdamW"),
        {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1},
        "stable_adamw",
        {"lr": 0.01, "b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adan": (
        *("pytorch-optimizer", "Adan"),
        {"lr": 0.01, "betas": [0.98, 0.92, 0.99], "eps": 1e-6},
        "adan",
        {"lr": 0.01, "b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-6, "eps_root": 0.0},
    ),
    "adabelief": (
        *("pytorch-optimizer", "AdaBelief"),
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-16, "rectify": False},
        "adabelief",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16},
    ),
    "yogi": (
        *("pytorch-optimizer", "Yogi"),
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-3, "initial_accumulator": 1e-6},
        "yogi",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-3},
    ),
    "ademamix": (
        *("pytorch-optimizer", "AdEMAMix"),
        {"lr": 0.01, "betas": [0.9, 0.999, 0.9999], "alpha": 5.0, "eps": 1e-8},
        "ademamix",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "b3": 0.9999, "alpha": 5.0, "eps": 1e-8},
    ),
    "madgrad": (
        *("pytorch-optimizer", "MADGRAD"),
        {"lr": 0.01, "momentum": 0.9, "eps": 1e-6},
        "madgrad",
        {"lr": 0.01, "momentum": 0.9, "eps": 1e-6},
    ),
    "qhm": (
        *("pytorch-optimizer", "QHM"),
        {"lr": 0.01, "momentum": 0.9, "nu": 0.7},
        "qhm",
        {"lr": 0.01, "b1": 0.9, "v1": 0.7},
    ),
    "grams": (
        *("pytorch-optimizer", "Grams"),
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-6},
        "grams",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6},
    ),
    "lars": (
        *("pytorch-optimizer", "LARS"),
        {"lr": 0.01, "momentum": 0.9, "trust_coefficient": 0.001},
        "lars",
        {"lr": 0.01, "momentum": 0.9, "trust_coefficient": 0.001},
    ),
    "fromage": (
        *("pytorch-optimizer", "Fromage"),
        {"lr": 0.01},
        "fromage",
        {"lr": 0.01, "min_norm": 0.0},
    ),
    "novograd": (
        *("pytorch-optimizer", "NovoGrad"),
        {"lr": 0.01, "betas": [0.9, 0.25], "eps": 1e-8, "grad_averaging": False},
        "novograd",
        {"lr": 0.01, "b1": 0.9, "b2": 0.25, "eps": 1e-8},
    ),
    "sign_sgd": (
        *("pytorch-optimizer", "SignSGD"),
        {"lr": 0.01, "momentum": 0.0},
        "sign_sgd",
        {"lr": 0.01},
    ),
    "signum": (
        *("pytorch-optimizer", "SignSGD"),
        {"lr": 0.01, "momentum": 0.9},
        "signum",
        {"lr": 0.01, "beta": 0.9},
    ),
    "laprop": (
        *("timm", "LaProp"),
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-15},
        "laprop",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-15},
    ),
    "lamb": (
        *("timm", "Lamb"),
        {
            "lr": 0.01,
            "betas": [0.9, 0.999],
            "eps": 1e-6,
            "weight_decay": 0.1,
            "max_grad_norm": None,
        },
        "lamb",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adopt": (
        *("timm", "Adopt"),
        {"lr": 0.01, "betas": [0.9, 0.9999], "eps": 1e-6, "clip_exp": 0.25},
        "adopt",
        {"lr": 0.01, "b1": 0.9, "b2": 0.9999, "eps": 1e-6},
    ),
    "qhadam": (
        *("qhoptim", "QHAdam"),
        {"lr": 0.01, "betas": [0.995, 0.999], "nus": [0.7, 1.0], "eps": 1e-8},
        "qhadam",
        {"lr": 0.01, "b1": 0.995, "b2": 0.999, "v1": 0.7, "v2": 1.0, "eps": 1e-8},
    ),
    "sm3": (
        *("torch-SM3", "SM3"),
        {"lr": 0.01, "momentum": 0.9, "beta": 0.0, "eps": 1e-8},
        "sm3",
        {"lr": 0.01, "momentum": 0.9},
    ),
    "adam_mini": (
        *("adam-mini", "Adam_mini"),
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "verbose": False},
        "adam_mini",
        {"lr": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
    ),
    "adafactor": (
        *("pytorch-optimizer", "AdaFactor"),
        {
            **{"lr": 0.01, "betas": [None, 0.999], "momentum": None, "scale_parameter": False},
            **{"relative_step": False, "warmup_init": False},
        },
        "adafactor",
        {"lr": 0.01, "min_dim_size_to_factor": 2, "multiply_by_parameter_scale": False},
    ),
}


def path(p0: np.ndarray, grads: np.ndarray, package: str, optimizer: str, kwargs: dict):
    """The params after each step."""
    if package == "adam-mini":  # its kernels are (out, in)
        p0, grads = p0.T, grads.transpose(0, 2, 1)
    p = torch.nn.Parameter(torch.tensor(p0))
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    make = getattr(importlib.import_module(PACKAGES[package]), optimizer)
    opt = make([("mlp", p)] if package == "adam-mini" else [p], **kwargs)
    if package == "schedulefree":
        opt.train()
    params = []
    for g in grads:
        p.grad = torch.tensor(g)
        opt.step()
        params.append(p.detach().numpy().copy())
    params = np.stack(params)
    return params.transpose(0, 2, 1) if package == "adam-mini" else params


def main() -> None:
    """Write `packages.npz` and print the versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": DATE,
    }
    p0, grads = problem()
    paths = {name: path(p0, grads, *case[:3]) for name, case in CASES.items()}
    fields = ("package", "optimizer", "kwargs", "oracle", "oracle_kwargs")
    cases = {name: dict(zip(fields, case, strict=True)) for name, case in CASES.items()}
    meta = json.dumps({"cases": cases, **versions})
    file = Path(__file__).with_name("packages.npz")
    np.savez_compressed(file, p0=p0, grads=grads, meta=np.array(meta), **paths)
    print(file.name, versions)


if __name__ == "__main__":
    main()
