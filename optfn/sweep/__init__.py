"""Many training runs in one compiled program."""

from optfn.sweep.optuna_search import optuna as optuna
from optfn.sweep.search import Search as Search
from optfn.sweep.search import Session as Session
from optfn.sweep.search import grid as grid
from optfn.sweep.search import random as random
from optfn.sweep.search import sobol as sobol
from optfn.sweep.space import Choice as Choice
from optfn.sweep.space import Distribution as Distribution
from optfn.sweep.space import Fixed as Fixed
from optfn.sweep.space import IntUniform as IntUniform
from optfn.sweep.space import LogUniform as LogUniform
from optfn.sweep.space import OneMinusLogUniform as OneMinusLogUniform
from optfn.sweep.space import Uniform as Uniform
from optfn.sweep.space import as_space as as_space
