"""A conformance kit for optimizers, and problems to try them on."""

from optfn.testing import problems as problems
