"""A conformance kit for optimizers, problems to test them on, and what a program communicates."""

from optfn.testing import checks as checks
from optfn.testing import problems as problems
from optfn.testing.checks import ConformanceError as ConformanceError
from optfn.testing.checks import Failure as Failure
from optfn.testing.checks import check_transform as check_transform
from optfn.testing.communication import Collective as Collective
from optfn.testing.communication import collectives as collectives
from optfn.testing.coordinate_check import CoordinateCheck as CoordinateCheck
from optfn.testing.coordinate_check import coordinate_check as coordinate_check
