"""Which examples are in a batch: every one once an epoch, in another order each time."""

import jax
import jax.numpy as jnp
from jax import lax

ROUNDS = 24  # an example is left where it was by all of them once in 2^24 times


def rows_of_steps(key: jax.Array, steps: jax.Array, examples: int, batch_size: int) -> jax.Array:
    """The rows of the data in the batches of consecutive steps, int32 `[steps, batch_size]`.

    Epoch after epoch, each a permutation of all rows, is cut into batches; where an epoch is not a
    whole number of batches, one has the end of an epoch and the start of the next.

    There is no table of a permutation, so a step costs the same whatever the number of examples: a
    place is exchanged with its mirror image, or is not, again and again. A round draws the point of
    reflection, and a pair of images its coin by a hash.

    Args:
        key: the key of the run.
        steps: int32 `[steps]`, rising by one.
        examples: the number of rows.
        batch_size: at most `examples`.

    Source: Hoang, Morris and Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle"
    (swap-or-not).
    """
    count = jnp.uint32(examples)
    # From 2^32 examples on this starts again, with the epochs of the first.
    begin = steps.astype(jnp.uint32) * jnp.uint32(batch_size)
    place = begin[:, None] + jnp.arange(batch_size, dtype=jnp.uint32)[None]
    epoch, place = place // count, place % count
    most = (steps.shape[0] * batch_size + examples - 2) // examples + 1
    draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (ROUNDS, 2), jnp.uint32))
    drawn = draws(epoch[0, 0] + jnp.arange(most, dtype=jnp.uint32))
    first = epoch[:, :1]
    own = (first[:, 0] - epoch[0, 0]).astype(jnp.int32)
    # A batch is of at most two epochs: [rounds, steps, 1, 2].
    this, following = (
        jnp.moveaxis(drawn[jnp.minimum(own + i, most - 1)], 1, 0)[:, :, None] for i in (0, 1)
    )

    def exchange(place: jax.Array, draw: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        this, following = draw
        point, salt = (jnp.where(epoch > first, following[..., i], this[..., i]) for i in (0, 1))
        point = point % count
        image = jnp.where(place <= point, point - place, point + (count - place))
        return jnp.where(_coin(jnp.maximum(place, image), salt), image, place), None

    return lax.scan(exchange, place, (this, following))[0].astype(jnp.int32)


def _coin(x: jax.Array, salt: jax.Array) -> jax.Array:
    """A fair coin for each number, uint32, and salt."""
    x = (x ^ salt) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)
    return x >= jnp.uint32(2**31)
