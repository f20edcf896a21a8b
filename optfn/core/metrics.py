"""Reading the metrics in an optimizer's state."""

import optax

from optfn.core.hyperparameters import ByName
from optfn.core.transform import check_transform_type, readable_state
from optfn.core.walk import walk


class Metrics(ByName):
    """Values by qualified name; `m["grad_norm"]` finds `m["monitor.grad_norm"]` if unique."""

    what = "metric"


def metrics(tx: optax.GradientTransformation, state: optax.OptState) -> Metrics:
    """The metrics of the last update: what a `monitor` measures, skipped steps, rates found.

        params, state = optfn.step(tx, params, grads, state)
        print(optfn.metrics(tx, state)["grad_norm"])

    The docstring of `monitor` lists what it measures. Without a monitor there are only the values
    that the state holds anyway: `skipped`, the steps or micro-gradients that `skip_nonfinite`,
    `skip_spikes`, `loss_scale` and `accumulate` left out; the `scale` of `loss_scale`; and the
    `scale`, `best_value` and `plateau_count` of `reduce_on_plateau`. Optimizers that find their
    rate say what they found:

        effective_learning_rate    the factor of the last update: what the stage multiplied its
                                   direction by (`polyak_sgd`, `dog`, `dowg`, `momo`, `momo_adam`,
                                   `prodigy`, line searches), the newest gradient
                                   (`dadapt_adamw`), or the steps inside (`mechanize`)
        estimated_distance         the distance to the solution, as far as it is known after the
                                   update (`prodigy`, `dadapt_adamw`, `dog`, `dowg`)

    The factor is the stage's own: a `scale_by_learning_rate` behind it, as in `dog(0.5)`, comes on
    top. Layer-wise DoG has a rate for each array, in its slots.

    Args:
        tx: an optimizer.
        state: its state after the update.

    Returns:
        A dict from qualified names like `"accumulate.monitor.grad_norm"`, formed as in
        `hyperparameters`, to scalars; `[n]` from the state of n runs. A short name works as a
        key where it is unique. It is a pytree, so a jitted step or the body of a `scan` can
        return it. Before the first update every measurement and count is 0, what an optimizer
        estimates its initial value.
    """
    tx = check_transform_type(tx, "metrics(tx, state): tx")
    state = readable_state(state)
    return Metrics(
        sorted(
            (".".join((*place.names, quantity)), value)
            for place in walk(tx, state.slots, state.step)
            if place.stage is not None
            for quantity, value in place.stage.measurements(place.slots).items()
        )
    )
