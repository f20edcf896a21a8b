"""Recipes: functions of a few numbers that return ordinary optimizers, with usual settings.

    tx = optfn.recipes.transformer_adamw(3e-4, total_steps=10_000)
    print(tx)                            what it is made of
    print(optfn.summary(tx, params))     who gets what

A recipe is a start. All that it is made of is public, so its `repr` can be pasted and changed;
`replace` gives any of its numbers another value, and `param_groups` other values to some leaves.
"""

from optfn.recipes.finetuning import finetune as finetune
from optfn.recipes.finetuning import lora as lora
from optfn.recipes.generative import diffusion as diffusion
from optfn.recipes.generative import gan as gan
from optfn.recipes.reinforcement import rl_adam as rl_adam
from optfn.recipes.transformers import transformer_adamw as transformer_adamw
from optfn.recipes.transformers import transformer_muon as transformer_muon
from optfn.recipes.vision import resnet_sgd as resnet_sgd
from optfn.recipes.vision import vit as vit
from optfn.recipes.which_leaves import decays as decays
