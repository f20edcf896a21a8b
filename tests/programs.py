"""What stands where in a traced program."""

from collections.abc import Iterator

from jax.extend import core


def conditionals_with(primitive: str, jaxpr: core.Jaxpr) -> tuple[list, list]:
    """The equations of a primitive outside of any `cond`, and the outermost `cond`s with some."""
    outside, conditionals = [], []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            outside.append(equation)
        elif equation.primitive.name == "cond":
            if any(any(conditionals_with(primitive, inner)) for inner in _inside(equation)):
                conditionals.append(equation)
        else:
            for inner in _inside(equation):
                more = conditionals_with(primitive, inner)
                outside += more[0]
                conditionals += more[1]
    return outside, conditionals


def _inside(equation) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
