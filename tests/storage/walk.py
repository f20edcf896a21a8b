import jax

import optfn


def walked(tx, params, grads, *, step=optfn.step):
    """The params and the state after a step for each gradient, in one program."""

    @jax.jit
    def run(tx, params, grads):
        def body(carry, g):
            return step(tx, carry[0], g, carry[1]), None

        return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    return run(tx, params, grads)
