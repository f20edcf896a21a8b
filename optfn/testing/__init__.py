"""A conformance kit for optimizers, and problems to test them on."""

from optfn.testing import checks as checks
from optfn.testing import problems as problems
from optfn.testing.checks import ConformanceError as ConformanceError
from optfn.testing.checks import Failure as Failure
from optfn.testing.checks import check_transform as check_transform
