"""Paths of an AdamW with a state of 8 bits, in float32: writes `storage.npz` beside this file.

It needs PyTorch and pytorch-optimizer, whose `FlashAdamW` keeps the moments in groups of 32 with
scales in float16, and beside bfloat16 params a byte for what they lack. The rates, betas and eps
are those of optfn's `adamw`; the weight decay is zero, since in torch's order it is rounded before
the step is added. The gradients depend on the step alone: no difference in the params feeds back.
"""

import importlib.metadata
import json
import platform
from pathlib import Path

import numpy as np
import torch
from pytorch_optimizer import FlashAdamW

DATE = "2026-11-30"
SIZE, STEPS = 4096, 20
# Betas whose distance from 1 is exact in float32.
BETAS = [1 - 2.0**-3, 1 - 2.0**-10]
HYPERPARAMETERS = {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0}


def problem() -> dict[str, np.ndarray]:
    """The first params and the gradients, as int8 numbers times powers of two.

    So the file is small, and both are exact in bfloat16. No gradient is below 1/32 of another one
    of its group: the package stores such a second moment as zero and divides by it.
    """
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], SIZE) * np.where(rng.uniform(size=(STEPS, SIZE)) < 0.3, -1, 1)
    return {
        "p0": np.int8(rng.integers(32, 128, SIZE) * rng.choice([-1, 1], SIZE)),
        "grads": np.int8(signs * rng.integers(32, 128, (STEPS, SIZE))),
        "exponents": np.int8(rng.integers(-12, -8, SIZE)),
    }


def path(p0: np.ndarray, grads: np.ndarray, dtype: torch.dtype, **kwargs) -> dict[str, np.ndarray]:
    """What is stored after the first step and after the last."""
    p = torch.nn.Parameter(torch.tensor(p0).to(dtype))
    opt = FlashAdamW([p], **HYPERPARAMETERS, **kwargs)
    found = {}
    for i, g in enumerate(grads):
        p.grad = torch.tensor(g).to(dtype)
        opt.step()
        if i in (0, len(grads) - 1):
            arrays = {"params": p.detach().float(), **opt.state[p]}
            found |= {f"{name}_{i + 1}": x.numpy().copy() for name, x in arrays.items()}
    return {name.replace("::", "_"): x for name, x in found.items()}


def main() -> None:
    """Write `storage.npz` and print the versions."""
    versions = {
        "pytorch-optimizer": importlib.metadata.version("pytorch-optimizer"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": DATE,
    }
    own = problem()
    p0 = np.float32(own["p0"]) / 64
    grads = np.ldexp(np.float32(own["grads"]), own["exponents"])
    paths = {
        "float32": path(p0, grads, torch.float32),
        "bfloat16": path(p0, grads, torch.bfloat16, master_weight_bits=24),
    }
    arrays = {f"{case}_{name}": x for case, found in paths.items() for name, x in found.items()}
    meta = json.dumps({"hyperparameters": HYPERPARAMETERS, **versions})
    file = Path(__file__).with_name("storage.npz")
    np.savez_compressed(file, meta=np.array(meta), **own, **arrays)
    print(file.name, versions, {name: x.dtype.name for name, x in arrays.items()})


if __name__ == "__main__":
    main()
