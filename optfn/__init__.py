"""optfn: functional optimizers for JAX, in which an optimizer is data."""

# The core: what an optimizer is.
from optfn.core.apply import apply_updates as apply_updates
from optfn.core.apply import step as step
from optfn.core.data import child as child
from optfn.core.data import numbers as numbers
from optfn.core.data import per_leaf as per_leaf
from optfn.core.data import static as static
from optfn.core.dtypes import abs_sq as abs_sq
from optfn.core.dtypes import global_norm as global_norm
from optfn.core.dtypes import sqrt as sqrt
from optfn.core.hyperparameters import Hyperparameters as Hyperparameters
from optfn.core.hyperparameters import as_arrays as as_arrays
from optfn.core.hyperparameters import hyperparameters as hyperparameters
from optfn.core.hyperparameters import in_axes as in_axes
from optfn.core.hyperparameters import replace as replace
from optfn.core.hyperparameters import stack as stack
from optfn.core.hyperparameters import unstack as unstack
from optfn.core.leafwise import Leafwise as Leafwise
from optfn.core.schedule import Schedule as Schedule
from optfn.core.transform import Context as Context
from optfn.core.transform import State as State
from optfn.core.transform import Transform as Transform

# Composition.
from optfn.compose.chain import chain as chain
from optfn.compose.interop import from_optax as from_optax
from optfn.compose.interop import to_optax as to_optax
from optfn.compose.partition import freeze as freeze
from optfn.compose.partition import masked as masked
from optfn.compose.partition import partition as partition

# Stages that are no algorithm of their own.
from optfn.transforms.clip import clip as clip
from optfn.transforms.clip import clip_by_global_norm as clip_by_global_norm
from optfn.transforms.decay import add_decayed_weights as add_decayed_weights
from optfn.transforms.momentum import ema as ema
from optfn.transforms.momentum import trace as trace
from optfn.transforms.scale import scale as scale
from optfn.transforms.scale import scale_by_learning_rate as scale_by_learning_rate
from optfn.transforms.scale import scale_by_schedule as scale_by_schedule

# Optimizers and their directions.
from optfn.optimizers.elementwise.adagrad import adagrad as adagrad
from optfn.optimizers.elementwise.adagrad import scale_by_rss as scale_by_rss
from optfn.optimizers.elementwise.adam import adam as adam
from optfn.optimizers.elementwise.adam import adamw as adamw
from optfn.optimizers.elementwise.adam import amsgrad as amsgrad
from optfn.optimizers.elementwise.adam import scale_by_adam as scale_by_adam
from optfn.optimizers.elementwise.adam import scale_by_amsgrad as scale_by_amsgrad
from optfn.optimizers.elementwise.lion import lion as lion
from optfn.optimizers.elementwise.lion import scale_by_lion as scale_by_lion
from optfn.optimizers.elementwise.rmsprop import rmsprop as rmsprop
from optfn.optimizers.elementwise.rmsprop import scale_by_rms as scale_by_rms
from optfn.optimizers.elementwise.rmsprop import scale_by_stddev as scale_by_stddev
from optfn.optimizers.elementwise.sgd import momentum as momentum
from optfn.optimizers.elementwise.sgd import sgd as sgd

# Schedules are a namespace of their own.
from optfn import schedules as schedules

__version__ = "0.1.0"
