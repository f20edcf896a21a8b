"""Small models that learn from data: a linear one and three nets."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Key, Params, Problem


def _layer(key: Key, inputs: int, outputs: int) -> dict[str, jax.Array]:
    return {"kernel": _kernel(key, inputs, outputs), "bias": jnp.zeros(outputs)}


def _kernel(key: Key, inputs: int, outputs: int) -> jax.Array:
    return jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs)


def _dense(params: Params, inputs: jax.Array) -> jax.Array:
    return inputs @ params["kernel"] + params["bias"]


def _cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """The mean over rows of two logits; the second is for positive labels."""
    rows = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.where(labels > 0, rows[:, 1], rows[:, 0]))


def classifier(hidden: int = 16, samples: int = 64) -> Problem:
    """A small network that has to learn XOR: mean cross-entropy of a two-layer softmax classifier.

    The data are four tight clusters of points around ``(±1, ±1)``, where opposite ones share a
    label; one layer of ``hidden`` tanh units separates them, but no linear classifier does. The
    parameters are a nested dictionary of kernels and biases. Zero parameters are a stationary point
    of value ``log 2``, and swapping hidden units changes nothing. As every example can be
    classified correctly with any confidence, the infimum is 0, but no parameters attain it: the
    weights have to grow forever, so there is no ``minimizer``.

    The target is ``log(2) / samples``. A single misclassified example adds at least that to the
    mean, so below it every example is classified correctly. Source: Rumelhart, Hinton and Williams,
    "Learning internal representations by error propagation" (1986).
    """
    if samples < 4 or samples % 4:
        raise ValueError(f"need a positive multiple of 4 samples, got {samples}")
    signs = np.tile([[-1, -1], [-1, 1], [1, -1], [1, 1]], (samples // 4, 1))
    points = signs + 0.2 * np.random.default_rng(0).normal(size=signs.shape)
    labels = np.prod(signs, axis=1)

    def init(key: Key) -> Params:
        hidden_key, output_key = jax.random.split(key)
        return {"hidden": _layer(hidden_key, 2, hidden), "output": _layer(output_key, hidden, 2)}

    def value(params: Params) -> jax.Array:
        params = jax.tree.map(jnp.asarray, params)

        def logits(point: jax.Array) -> jax.Array:
            return _dense(params["output"], jnp.tanh(_dense(params["hidden"], point)))

        rows = jax.vmap(logits)(jnp.asarray(points, params["hidden"]["kernel"].dtype))
        return _cross_entropy(rows, labels)

    return Problem(
        name="classifier",
        difficulty="A nonconvex tree of layers whose minimum is at infinity.",
        init=init,
        value=value,
        optimum=0.0,
        target=math.log(2) / samples,
    )


def separable(dim: int = 5, samples: int = 64, margin: float = 0.5) -> Problem:
    """Logistic regression on separable data, ``mean_i log(1 + exp(-a_i x))``.

    The rows ``a_i`` are points times their labels, ±1. Along the unit vector ``d`` of (1, 1/2, 1/4,
    ...) all rows have ``a_i d >= margin``, so the infimum 0 is approached along ``d`` but never
    attained, and there is no ``minimizer``. The problem is convex. The start is normally
    distributed with standard deviation 0.1, at a value of about ``log(2)``. The gradient is no
    larger than the largest ``|a_i|`` times the value, so it fades as fast as the value falls:
    gradient descent at a fixed rate lowers the value only as fast as ``1 / (rate * steps)``.

    The target is 1e-3. Every example is classified correctly below ``log(2) / samples``, about ten
    times the target; the descent from there is what takes long. Source: Soudry et al., "The
    implicit bias of gradient descent on separable data" (2018).
    """
    if dim < 1 or samples < 1 or margin <= 0:
        raise ValueError(f"need all positive, got {dim}, {samples} and {margin}")
    direction = 0.5 ** np.arange(dim)
    direction /= np.linalg.norm(direction)
    points = np.random.default_rng(0).normal(size=(samples, dim))
    labels = np.sign(points @ direction)
    rows = labels[:, None] * points + margin * direction

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        margins = jnp.matmul(jnp.asarray(rows, x.dtype), x, precision="highest")
        return jnp.mean(jax.nn.softplus(-margins))

    return Problem(
        name="separable",
        difficulty="The minimum is at infinity, and the gradient fades on the way to it.",
        init=lambda key: jax.random.normal(key, (dim,)) / 10,
        value=value,
        optimum=0.0,
        target=1e-3,
    )


def recurrent(hidden: int = 8, length: int = 6) -> Problem:
    """A recurrent net that has to recall which sign came first: mean cross-entropy over sequences.

    The data are all ``2^length`` sequences of ±1, and the label of one is its first entry. The
    state starts at zero and becomes ``tanh(x w + h W + b)`` with each entry ``x``; a softmax layer
    reads the last state. All entries but the first are distractions, and without memory (``W = 0``)
    no value is below ``log 2``, which is also the value at zero parameters, a stationary point. A
    net that keeps the sign must feed its state back strongly: where the feedback is weak, the trace
    of the first entry fades from step to step, and so does the gradient. As in :func:`classifier`
    the infimum is 0, no parameters attain it, and there is no ``minimizer``.

    The target is ``log(2) / 2^length``, below which all sequences are classified correctly. Source:
    the latching problem of Bengio, Simard and Frasconi, "Learning long-term dependencies with
    gradient descent is difficult" (1994).
    """
    if hidden < 1 or length < 1:
        raise ValueError(f"need positive sizes, got {hidden} and {length}")
    sequences = np.array(list(itertools.product([-1.0, 1.0], repeat=length)))

    def init(key: Key) -> Params:
        input_key, hidden_key, output_key = jax.random.split(key, 3)
        cell = {
            "input": jax.random.normal(input_key, (hidden,)),
            "hidden": _layer(hidden_key, hidden, hidden),
        }
        return {"cell": cell, "output": _layer(output_key, hidden, 2)}

    def value(params: Params) -> jax.Array:
        params = jax.tree.map(jnp.asarray, params)
        weights = params["cell"]["input"]

        def logits(sequence: jax.Array) -> jax.Array:
            state = jnp.zeros_like(weights)
            for t in range(length):
                state = jnp.tanh(sequence[t] * weights + _dense(params["cell"]["hidden"], state))
            return _dense(params["output"], state)

        rows = jax.vmap(logits)(jnp.asarray(sequences, weights.dtype))
        return _cross_entropy(rows, sequences[:, 0])

    return Problem(
        name="recurrent",
        difficulty="The entry that counts is the first, and the gradient fades on the way back.",
        init=init,
        value=value,
        optimum=0.0,
        target=math.log(2) / 2**length,
    )


def attention(width: int = 4, items: int = 4) -> Problem:
    """Attention that has to find the marked item: mean cross-entropy of its sign.

    The data are all lists of ``items`` items (m, s), in which one item has the mark ``m = 1`` and
    the others ``m = 0``, and the signs ``s`` are ±1; the label is the sign of the marked item. The
    model maps each item to a key and to a value of the given width. A softmax over the products of
    the keys with a learned query weighs the values, and a softmax layer reads their sum. Where to
    look (query and keys) and what to say (values and output) help only together: zero parameters
    are a stationary point of value ``log 2``, and with uniform weights the label can only be
    guessed from the majority of the signs, to which some marked items do not belong. As in
    :func:`classifier` the infimum is 0, no parameters attain it, and there is no ``minimizer``.

    The target is ``log 2`` over the number of lists, below which all are classified correctly.
    Sources: Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
    translate" (2015); Vaswani et al., "Attention is all you need" (2017).
    """
    if width < 1 or items < 3:
        raise ValueError(f"need width >= 1 and items >= 3, got {width} and {items}")
    cases = list(itertools.product(range(items), itertools.product([-1.0, 1.0], repeat=items)))
    lists = np.array([[(i == marked, s) for i, s in enumerate(signs)] for marked, signs in cases])
    labels = np.array([signs[marked] for marked, signs in cases])

    def init(key: Key) -> Params:
        query_key, key_key, value_key, output_key = jax.random.split(key, 4)
        return {
            "query": jax.random.normal(query_key, (width,)),
            "key": _kernel(key_key, 2, width),
            "value": _kernel(value_key, 2, width),
            "output": _layer(output_key, width, 2),
        }

    def value(params: Params) -> jax.Array:
        params = jax.tree.map(jnp.asarray, params)

        def logits(entries: jax.Array) -> jax.Array:
            scores = entries @ params["key"] @ params["query"] / math.sqrt(width)
            return _dense(params["output"], jax.nn.softmax(scores) @ entries @ params["value"])

        rows = jax.vmap(logits)(jnp.asarray(lists, params["query"].dtype))
        return _cross_entropy(rows, labels)

    return Problem(
        name="attention",
        difficulty="Where to look and what to say have to be learned together.",
        init=init,
        value=value,
        optimum=0.0,
        target=math.log(2) / len(cases),
    )
