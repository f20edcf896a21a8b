"""Stages that a user of the core might write, with public names only."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import optfn


class every_kth(optfn.Transform):
    """Runs its inner transform at every k-th update only, and gives zero updates in between.

    So the inner transform has a step of its own, in a State of its own.
    """

    transform: optfn.Transform = optfn.child()
    k: int = optfn.static(default=2)

    def init_slots(self, params):
        return self.transform.init(params)

    def apply(self, updates, slots, ctx):
        def run():
            return self.transform.update(updates, slots, ctx.params, **ctx.extra_args)

        def wait():
            return jax.tree.map(jnp.zeros_like, updates), slots

        return jax.lax.cond((ctx.step + 1) % self.k == 0, run, wait)

    def inner(self, slots, step, label):
        return slots.slots, slots.step


class add_noise(optfn.Leafwise):
    """Adds normally distributed noise."""

    random = True

    seed: int = 0
    stddev: Any = 1.0

    def update_leaf(self, g, slots, param, t, *, key):
        return g + self.stddev * jax.random.normal(key, g.shape, g.dtype), slots


class newton(optfn.Leafwise):
    """Divides by a diagonal of curvatures plus a damping, both given at every update."""

    extra_args: ClassVar = {"curvature": "tree", "damping": "scalar"}

    def update_leaf(self, g, slots, param, t, *, curvature, damping):
        return g / (curvature + damping), slots


class halve_until_lower(optfn.Transform):
    """Halves the step as often as it takes to get below the current value: a line search."""

    extra_args: ClassVar = {"value_fn": "function"}
    needs_params = True

    def apply(self, updates, slots, ctx):
        value_fn = ctx.extra_args["value_fn"]
        value = value_fn(ctx.params)

        def moved(share):
            return jax.tree.map(lambda p, u: p + share * u, ctx.params, updates)

        def too_high(share):
            return (value_fn(moved(share)) >= value) & (share > 1e-6)

        share = jax.lax.while_loop(too_high, lambda share: share / 2, jnp.float32(1))
        return jax.tree.map(lambda u: share * u, updates), slots
