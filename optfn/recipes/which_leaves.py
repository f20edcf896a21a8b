"""What recipes must know of a model: which of its arrays weight decay is for.

It is read off the path and the number of axes, since these are alike in Flax, Equinox and Haiku:

    path                             axes    decays
    .../kernel, /w, /weight          2+      yes, convolutions too
    .../embedding, /embeddings       2       yes
    .../bias, /b, /scale, /offset    any     no, also where a scan stacks those of many layers
    .../layer_norm/weight            any     no, for the same reason
    .../pos_embedding, /cls_token    any     no
    anything else                    0, 1    no

Which arrays are matrices for Muon, and how, is another question, with an answer in `matrices`.
"""

import re
from typing import Any

import jax.numpy as jnp

from optfn.core.matrix_axes import VECTORS

NORM = re.compile(r".*norm.*|(.*_)?(ln|bn)(_\w*|\d*)")
POSITION = re.compile(
    r"((abs|rel)(olute|ative)?_)?pos(ition(al)?)?(_?(emb|enc|bias|table)\w*)?|wpe|"
    r"(cls|class|dist|mask|register)_tokens?"
)


def decays(path: str, leaf: Any) -> bool:
    """The mask of weight decay in the recipes: kernels and embeddings, and nothing else.

        adamw(1e-3, weight_decay=0.1, mask=recipes.decays)

    Biases, the scales of norms, learned positions and class tokens do not decay, nor does what has
    fewer than two axes. They are known by their names, so that it makes no difference whether a
    scan over layers stacks them. For names of your own write a mask with `by_path`.

    Args:
        path: of the leaf, such as `"layers_0/kernel"`.
        leaf: the array, or its `jax.ShapeDtypeStruct`.

    Source: Radford et al. 2018 (GPT) and Karpathy 2022 (nanoGPT): all arrays of two axes or more;
    Touvron et al. 2021 (DeiT): but positions and class tokens.
    """
    *above, name = path.lower().split("/")
    of_norm = name == "weight" and bool(above) and NORM.fullmatch(above[-1]) is not None
    # A leaf `cls` is the class token; what lies in a `cls` is a classifier.
    of_position = name == "cls" or any(map(POSITION.fullmatch, (*above, name)))
    return jnp.ndim(leaf) >= 2 and name not in VECTORS and not of_norm and not of_position
