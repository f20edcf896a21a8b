"""Paths of other packages' matrix optimizers: writes `matrix_packages.npz` beside this file.

    python make_matrix.py CLONES

It needs Python 3.12 and what `PACKAGES` names: most are on PyPI, and those with a slash are read
from a folder of clones, `git clone https://github.com/microsoft/dion CLONES/dion` and so on. (Of
GaLore and APOLLO only the modules that are named here: they import much else, so install them with
`--no-deps`.)

A few matrices of odd shapes, the outputs as rows, take 12 steps along gradients given beforehand,
whose sizes change. The file holds `p0/SHAPE` and `grads/SHAPE` [12, rows, columns], the params
after each step of every case in `CASE/SHAPE`, the normal numbers that it drew in
`normals/CASE/SHAPE` [12, ...] (those of the last step that drew any), and `meta`, a JSON string:
the versions, and under "cases" the package, the call and the options of the param group of each.
MuonClip takes two matrices, `query` and `key`, and the largest `logits` of four heads [12, 4].

Everything is in float64: while a package runs, the dtypes that it casts to stand for float64. Its
other conventions stay, and the tests say by which settings or stages optfn follows them:

- torch, pytorch-optimizer and emerging-optimizers divide by max(norm, eps) before Newton-Schulz,
  KellerJordan/Muon and what was made of it by norm + eps.
- pytorch-optimizer's AdaMuon is that of the first version of the paper, its MuonClip has a sum for
  momentum and no look ahead, as Kimi K2, and its Shampoo neither momentum nor grafting.
- emerging-optimizers' AdaMuon divides by the root of the second moment and leaves the norm as it
  is then; its NorMuon keeps a moment for each entry of the longer side.
- GaLore and APOLLO decay the params after the step, and add eps before the correction of the
  second moment.
- kron-torch makes the factors equal in size at one update in a hundred, optfn at each; their
  product is the same.
- PSGD PRO adds noise to the gradients of which optfn adds the mean, and estimates norms from
  random vectors: here all these numbers are zero. heavyball takes one product more for a norm and
  rotates by up to 1/2 instead of 1/8. Both start at a given scale and have one limit or none.

Not here, since they follow other rules than the authors' code that is in `matrix.npz`:
heavyball's SOAP, KL-SOAP and KL-Shampoo (they lift the factors before the QR decomposition and
correct them for their zero start, and the KL ones take eigenvalues from the factors), its Kron
(whose norms are running bounds) and its Muon (in bfloat16 with stochastic rounding);
pytorch-optimizer's ScalableShampoo (roots by iteration) and GaLore, which renews its basis one step
early.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import platform
import subprocess
import sys
import types
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

DATE = "2026-11-30"
STEPS = 12
SHAPES = TALL, WIDE, SQUARE, ROW, COLUMN = ("7x3", "3x8", "4x4", "1x5", "5x1")

# The module of each package; those with a slash are in the folder of clones.
PACKAGES = {
    "torch": "torch.optim",
    "pytorch-optimizer": "pytorch_optimizer",
    "kron-torch": "kron_torch",
    "galore-torch": "galore_torch.adamw",
    "apollo-torch": "apollo_torch.apollo",
    "emerging-optimizers": "emerging_optimizers",
    "heavyball": "heavyball",
    "facebookresearch/optimizers": "distributed_shampoo",
    "Chongjie-Si/AdaMuon": "gpt2.models.optimizers.adamuon",
    "microsoft/dion": "dion.dion_reference",
}


# What stands for float64 while a package runs.
NARROW = ("float32", "float", "bfloat16", "float16")


class Case(NamedTuple):
    """One optimizer with its settings.

    Attributes:
        package: its name in `PACKAGES`.
        optimizer: the class.
        kwargs: its arguments.
        group: the options of the param group.
        shapes: the matrices.
        normals: what becomes of the normal numbers that it draws, "drawn" or "zero".
    """

    package: str
    optimizer: str
    kwargs: dict
    group: dict | None = None
    shapes: tuple[str, ...] = (TALL, WIDE)
    normals: str = "drawn"


class Settings(NamedTuple):
    """Settings that are an object of the package's: its class, and the arguments of that."""

    name: str
    kwargs: dict

    def made(self, module: str):
        return pkgutil.resolve_name(f"{module}.{self.name}")(**self.kwargs)


MUON = {"use_muon": True}
GRAFTING = {
    "preconditioner_config": Settings("shampoo_types.RootInvShampooPreconditionerConfig", {}),
    "grafting_config": Settings(
        "shampoo_types.AdamPreconditionerConfig", {"beta2": 0.9, "epsilon": 1e-6}
    ),
}
KRON = {"precond_dtype": torch.float64}
LOW_RANK = {"rank": 2, "update_proj_gap": 5, "scale": 0.25, "proj_type": "std"}
RANDOM = {**LOW_RANK, "scale": 1.0, "proj": "random", "scale_type": "channel"}

CASES = {
    "muon_settings_of_torch": Case(
        *("torch", "Muon"),
        {
            **{"lr": 0.01, "momentum": 0.8, "nesterov": False, "weight_decay": 0.3},
            **{"ns_coefficients": [3.0, -3.2, 1.2], "ns_steps": 3},
        },
        shapes=(WIDE,),
    ),
    "muon_match_rms_of_torch": Case(
        *("torch", "Muon"),
        {"lr": 0.01, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"},
        shapes=(TALL, ROW),
    ),
    "muon_quintic": Case(
        *("pytorch-optimizer", "Muon"),
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "ns_coeffs": "quintic"},
        MUON,
        shapes=(TALL,),
    ),
    "muon_gram": Case(
        *("pytorch-optimizer", "Muon"),
        {"lr": 0.01, "use_adjusted_lr": True, "ns_method": "gram_newton_schulz"},
        MUON,
        shapes=(WIDE,),
    ),
    "muon_unit_rms": Case(
        *("emerging-optimizers", "orthogonalized_optimizers.Muon"),
        {
            **{"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "coefficient_type": "deepseekv4"},
            **{"num_ns_steps": 10, "scale_mode": "unit_rms_norm", "fp32_matmul_prec": "highest"},
        },
        shapes=(WIDE, ROW),
    ),
    "muon_hyperball": Case(
        *("emerging-optimizers", "orthogonalized_optimizers.MuonHyperball"),
        {
            **{"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "nesterov": True},
            **{"coefficient_type": "cans", "fp32_matmul_prec": "highest"},
        },
        shapes=(WIDE, COLUMN),
    ),
    "normuon_preserve_norm": Case(
        *("pytorch-optimizer", "NorMuon"),
        {"lr": 0.02, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.1, "eps": 1e-3},
        MUON,
        shapes=(TALL, ROW),
    ),
    "normuon_match_rms": Case(
        *("pytorch-optimizer", "NorMuon"),
        {
            **{"lr": 0.01, "nesterov": False, "update_scale": "match_rms", "eps": 0.0},
            **{"ns_coeffs": "quintic"},
        },
        MUON,
        shapes=(TALL,),
    ),
    "normuon_longer": Case(
        *("emerging-optimizers", "orthogonalized_optimizers.AdaptiveMuon"),
        {
            **{"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
            **{"moment2_method": "normuon", "fp32_matmul_prec": "highest"},
        },
        shapes=(WIDE, ROW),
    ),
    "adamuon": Case(
        "Chongjie-Si/AdaMuon", "AdaMuon", {"rank": 0, "world_size": 1}, shapes=(WIDE, COLUMN)
    ),
    "adamuon_settings": Case(
        *("Chongjie-Si/AdaMuon", "AdaMuon"),
        {
            **{"rank": 0, "world_size": 1, "lr": 0.01, "weight_decay": 0.2, "momentum": 0.8},
            **{"nesterov": False, "ns_steps": 3, "eps": 1e-3},
        },
        shapes=(TALL,),
    ),
    "adamuon_first": Case(
        *("pytorch-optimizer", "AdaMuon"), {"lr": 0.02, "weight_decay": 0.1}, MUON
    ),
    "adamuon_unscaled": Case(
        *("emerging-optimizers", "orthogonalized_optimizers.AdaptiveMuon"),
        {
            **{"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "eps": 1e-3, "beta2": 0.9},
            **{"extra_scale_factor": 0.2, "fp32_matmul_prec": "highest"},
        },
        shapes=(SQUARE,),
    ),
    "scion_constrained": Case(
        *("pytorch-optimizer", "SCION"),
        {"lr": 0.02, "momentum": 0.2, "constraint": True, "norm_type": 2, "scale": 3.0},
        shapes=(TALL, ROW),
    ),
    "scion_of_signs": Case(
        *("pytorch-optimizer", "SCION"),
        {"lr": 0.02, "constraint": True, "norm_type": 4, "scale": 3.0},
    ),
    "scion_of_columns": Case(
        *("pytorch-optimizer", "SCION"),
        {"lr": 0.02, "norm_type": 6, "scale": 3.0},
        shapes=(TALL, ROW, COLUMN),
    ),
    "scion_of_rows": Case(
        *("pytorch-optimizer", "SCION"),
        {"lr": 0.02, "momentum": 0.3, "norm_type": 7},
        shapes=(WIDE, COLUMN),
    ),
    "scion_emerging": Case(
        *("emerging-optimizers", "orthogonalized_optimizers.Scion"),
        {"lr": 0.02, "momentum": 0.8, "spectral_radius": 4.0, "fp32_matmul_prec": "highest"},
        shapes=(WIDE,),
    ),
    "dion": Case("microsoft/dion", "Dion", {"qr_method": "qr"}, shapes=(TALL, WIDE, ROW)),
    "dion_of_low_rank": Case(
        *("microsoft/dion", "Dion"),
        {
            **{"qr_method": "qr", "lr": 0.02, "mu": 0.8, "weight_decay": 0.1},
            **{"rank_fraction": 0.5, "rank_multiple_of": 2, "epsilon": 1e-3},
        },
    ),
    "soap": Case(
        *("pytorch-optimizer", "SOAP"),
        {
            **{"betas": [0.9, 0.95], "shampoo_beta": 0.8, "eps": 1e-6, "weight_decay": 0.1},
            **{"precondition_frequency": 2},
        },
        shapes=(SQUARE,),
    ),
    "soap_one_sided": Case(
        *("pytorch-optimizer", "SOAP"),
        {"precondition_frequency": 3, "max_precondition_dim": 4},
    ),
    "shampoo_plain": Case(
        *("pytorch-optimizer", "Shampoo"), {"lr": 0.1, "matrix_eps": 1e-3}, shapes=(TALL,)
    ),
    "shampoo_in_blocks": Case(
        *("facebookresearch/optimizers", "distributed_shampoo.DistributedShampoo"),
        {
            **{"lr": 0.01, "betas": [0.8, 0.95], "epsilon": 1e-4, "weight_decay": 0.1},
            **{"precondition_frequency": 2, "start_preconditioning_step": 3},
            **{"max_preconditioner_dim": 5, **GRAFTING},
        },
    ),
    "splus_settings": Case(
        *("pytorch-optimizer", "SPlus"),
        {
            **{"lr": 0.2, "betas": [0.8, 0.95], "weight_decay": 0.2, "inverse_steps": 3},
            **{"max_dim": 6},
        },
        shapes=(SQUARE,),
    ),
    "kron": Case("kron-torch", "Kron", KRON, shapes=(WIDE, ROW)),
    "kron_settings": Case(
        *("kron-torch", "Kron"),
        {
            **{**KRON, "lr": 0.01, "b1": 0.8, "weight_decay": 0.1, "precond_lr": 0.3},
            **{"preconditioner_update_probability": 0.4, "precond_init_scale": 0.1},
        },
        shapes=(TALL, COLUMN),
    ),
    "kron_one_diag": Case(
        *("kron-torch", "Kron"),
        {**KRON, "lr": 0.01, "memory_save_mode": "one_diag"},
        shapes=(SQUARE,),
    ),
    "kron_smart_one_diag": Case(
        *("kron-torch", "Kron"),
        {**KRON, "lr": 0.01, "memory_save_mode": "smart_one_diag", "max_size_triangular": 3},
        shapes=(TALL,),
    ),
    "psgd_pro": Case(
        *("emerging-optimizers", "psgd.PSGDPro"),
        {"lr": 0.01, "precond_lr": 0.3},
        normals="zero",
        shapes=(TALL, ROW),
    ),
    "psgd_pro_settings": Case(
        *("emerging-optimizers", "psgd.PSGDPro"),
        {
            **{"lr": 0.01, "weight_decay": 0.2, "momentum": 0.7, "beta_lip": 0.5},
            **{"precond_init_scale": 0.5, "max_update_rms": 0.9},
        },
        normals="zero",
        shapes=(WIDE,),
    ),
    "psgd_pro_heavyball": Case(
        *("heavyball", "PSGDPRO"),
        {
            **{"lr": 0.01, "weight_decay": 0.1, "precond_init_scale": 0.5},
            **{"preconditioner_update_probability": 1.0, "q_dtype": "float64"},
        },
        shapes=(WIDE,),
        normals="zero",
    ),
    "psgd_pro_diagonal": Case(
        *("heavyball", "PSGDPRO"),
        {
            **{"lr": 0.01, "betas": [0.7, 0.9], "precond_lr": 0.3, "lower_bound_beta": 0.5},
            **{"precond_init_scale": 1.0, "memory_save_mode": "all_diag"},
            **{"preconditioner_update_probability": 1.0, "q_dtype": "float64"},
        },
        shapes=(SQUARE,),
        normals="zero",
    ),
    # Where a new basis comes into averages, its signs count, which the decomposition chooses.
    "galore": Case(
        *("galore-torch", "AdamW"),
        {"lr": 0.02, "weight_decay": 0.1},
        {**LOW_RANK, "update_proj_gap": 100},
        shapes=(TALL, WIDE, SQUARE),
    ),
    "galore_of_the_larger_side": Case(
        *("galore-torch", "AdamW"),
        {"lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-3},
        {**LOW_RANK, "update_proj_gap": 100, "proj_type": "reverse_std"},
    ),
    "galore_without_momentum": Case(
        *("galore-torch", "AdamW"), {"lr": 0.02, "betas": [0.0, 0.9]}, LOW_RANK
    ),
    "apollo": Case(
        *("apollo-torch", "AdamW"),
        {"lr": 0.02, "weight_decay": 0.1},
        RANDOM,
        (TALL, WIDE, SQUARE),
    ),
    "apollo_of_tensors": Case(
        *("apollo-torch", "AdamW"),
        {"lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-3},
        {**RANDOM, "rank": 3, "scale": 4.0, "scale_type": "tensor", "proj_type": "reverse_std"},
    ),
    "apollo_by_decomposition": Case(
        *("apollo-torch", "AdamW"),
        {"lr": 0.02},
        {**RANDOM, "proj": "svd", "update_proj_gap": 100},
        shapes=(WIDE, SQUARE),
    ),
    "apollo_mini": Case(
        *("apollo-torch", "AdamW"),
        {"lr": 0.02},
        {**RANDOM, "rank": 1, "scale": 128.0, "scale_type": "tensor"},
        shapes=(TALL, ROW),
    ),
}

# Queries and keys of four heads with two rows each, and the largest logits of each head and step.
CLIPPED = {
    "muon_clip": {"lr": 0.02, "weight_decay": 0.1, "qk_clip_threshold": 3.0},
    "muon_clip_of_queries": {"lr": 0.01, "qk_clip_threshold": 2.0, "qk_clip_alpha": 0.8},
}


def problem(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first matrix, and gradients whose size changes from step to step."""
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(-1, 1, size=(STEPS, 1, 1))
    return rng.normal(size=shape), sizes * rng.normal(size=(STEPS, *shape))


def copy_of(x: torch.Tensor) -> torch.Tensor:
    """In the place of a cast that makes an array of its own, which is then changed in place."""
    return x.double().clone()


@contextmanager
def widened(names: tuple[str, ...] = NARROW):
    """Code in which narrow dtypes stand for float64."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(torch, name, torch.float64))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.enter_context(mock.patch.object(torch.Tensor, "bfloat16", copy_of))
        yield


class Normals:
    """Stands for torch's normal numbers, and keeps those that were drawn last."""

    def __init__(self, kind: str):
        self.kind, self.last, self.rng = kind, None, np.random.default_rng(1)

    def __call__(self, *size, **_):
        size = size[0] if not isinstance(size[0], int) else size
        size = size.shape if isinstance(size, torch.Tensor) else tuple(size)
        if self.kind == "zero":
            return torch.zeros(size)
        self.last = self.rng.normal(size=size)
        return torch.tensor(self.last)


@contextmanager
def on_one_cpu():
    """Code that is written for several accelerators, on one processor."""
    empty = torch.empty

    def gather(out, x, async_op):
        out.copy_(x)
        return types.SimpleNamespace(wait=lambda: None)

    def on_cpu(*args, device=None, **kwargs):
        return empty(*args, **kwargs)

    with (
        mock.patch.object(torch, "empty", on_cpu),
        mock.patch("torch.distributed.all_gather_into_tensor", gather),
    ):
        yield


def import_alone(module: str) -> None:
    """Imports a module without its package, and without the version of transformers it asks for."""
    package = module.split(".")[0]
    found = importlib.util.find_spec(package)
    sys.modules[package] = importlib.util.module_from_spec(found)
    versions = types.ModuleType("versions")
    versions.require_version = lambda requirement: None
    names = ("transformers", "transformers.utils", "transformers.utils.versions")
    sys.modules.update(dict.fromkeys(names, versions))
    importlib.import_module(module)
    for name in names:
        del sys.modules[name]


def rounded_to(ref: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
    """In the place of heavyball's stochastic rounding."""
    return ref if source is None else source.to(ref.dtype)


def path(case: Case, p0: np.ndarray, grads: np.ndarray) -> dict[str, np.ndarray]:
    """The params after each step, and the normal numbers up to then."""
    module = PACKAGES[case.package]
    normals, params, drawn = Normals(case.normals), [], []
    # The rule of Kron has the eps of float32 in it, and heavyball rounds what is in bfloat16.
    names = () if case.package in ("kron-torch", "heavyball") else NARROW
    with ExitStack() as stack:
        for context in (widened(names), on_one_cpu()):
            stack.enter_context(context)
        for name in ("randn", "randn_like"):
            stack.enter_context(mock.patch.object(torch, name, normals))
        if case.package == "heavyball":
            stack.enter_context(mock.patch("heavyball.utils.stochastic_round_", rounded_to))
        make = pkgutil.resolve_name(f"{module}.{case.optimizer}")
        kwargs = {
            k: v.made(module) if isinstance(v, Settings) else v for k, v in case.kwargs.items()
        }
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
        p = torch.nn.Parameter(torch.tensor(p0))
        opt = make([{"params": [p], **case.group}] if case.group else [p], **kwargs)
        for g in grads:
            p.grad = torch.tensor(g)
            opt.step()
            params.append(p.detach().numpy().copy())
            drawn.append(normals.last)
    if normals.last is None:
        return {"": np.stack(params)}
    drawn = [np.zeros_like(normals.last) if x is None else x for x in drawn]
    return {"": np.stack(params), "normals/": np.stack(drawn)}


def clipped_path(kwargs: dict, both: dict, logits: np.ndarray) -> dict[str, np.ndarray]:
    """The queries and the keys after each step of MuonClip."""
    with widened():
        make = pkgutil.resolve_name("pytorch_optimizer.MuonClip")
        params = {role: torch.nn.Parameter(torch.tensor(p0)) for role, (p0, _) in both.items()}
        groups = [
            {"params": [p], "use_muon": True, "attention_name": "all", "qk_clip": role}
            for role, p in params.items()
        ]
        opt, steps = make(groups, **kwargs), {role: [] for role in params}
        for i, largest in enumerate(logits):
            for role, p in params.items():
                p.grad = torch.tensor(both[role][1][i])
            opt.step(attention_max_logits={"all": torch.tensor(largest)})
            for role, p in params.items():
                steps[role].append(p.detach().numpy().copy())
    return {role: np.stack(rows) for role, rows in steps.items()}


def version_of(package: str, clones: Path) -> str:
    """The version, or the commit of a clone."""
    if "/" not in package:
        return importlib.metadata.version(package)
    command = ["git", "-C", str(clones / package.split("/")[1]), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(clones: Path) -> None:
    """Write `matrix_packages.npz` and print the versions."""
    torch.set_default_dtype(torch.float64)
    for package in ("galore-torch", "apollo-torch"):
        import_alone(PACKAGES[package])
    sys.path += [str(clones / package.split("/")[1]) for package in PACKAGES if "/" in package]

    problems = {
        shape: problem(tuple(map(int, shape.split("x"))), seed) for seed, shape in enumerate(SHAPES)
    }
    arrays = {f"p0/{shape}": p0 for shape, (p0, _) in problems.items()}
    arrays |= {f"grads/{shape}": grads for shape, (_, grads) in problems.items()}
    for name, case in CASES.items():
        for shape in case.shapes:
            found = path(case, *problems[shape])
            arrays |= {f"{kind}{name}/{shape}": x for kind, x in found.items()}
    both = {"query": problem((8, 3), 10), "key": problem((8, 3), 11)}
    arrays["logits"] = np.random.default_rng(12).uniform(1, 4, size=(STEPS, 4))
    for role, (p0, grads) in both.items():
        arrays |= {f"p0/{role}": p0, f"grads/{role}": grads}
    for name, kwargs in CLIPPED.items():
        found = clipped_path(kwargs, both, arrays["logits"])
        arrays |= {f"{name}/{role}": x for role, x in found.items()}

    fields = ("package", "optimizer", "kwargs", "group")
    cases = {name: dict(zip(fields, case[:4], strict=True)) for name, case in CASES.items()}
    cases |= {
        name: {"package": "pytorch-optimizer", "optimizer": "MuonClip", "kwargs": kwargs}
        for name, kwargs in CLIPPED.items()
    }
    versions = {package: version_of(package, clones) for package in PACKAGES}
    versions |= {"numpy": np.__version__, "python": platform.python_version(), "date": DATE}
    meta = json.dumps({"cases": cases, **versions}, default=str)
    file = Path(__file__).with_name("matrix_packages.npz")
    np.savez_compressed(file, meta=np.array(meta), **arrays)
    print(file.name, versions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
