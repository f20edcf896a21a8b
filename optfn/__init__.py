"""optfn: functional optimizers for JAX, in which an optimizer is data."""

import typing as _typing
from importlib import import_module as _import_module

from optfn import linalg as linalg
from optfn import storage as storage

# The core: what an optimizer is.
from optfn.core.apply import apply_updates as apply_updates
from optfn.core.apply import evaluation_params as evaluation_params
from optfn.core.apply import step as step
from optfn.core.data import child as child
from optfn.core.data import numbers as numbers
from optfn.core.data import per_leaf as per_leaf
from optfn.core.data import static as static
from optfn.core.data import storage_dtype as storage_dtype
from optfn.core.numerics import abs_sq as abs_sq
from optfn.core.numerics import global_norm as global_norm
from optfn.core.numerics import sqrt as sqrt
from optfn.core.hyperparameters import Hyperparameters as Hyperparameters
from optfn.core.hyperparameters import as_arrays as as_arrays
from optfn.core.hyperparameters import hyperparameters as hyperparameters
from optfn.core.hyperparameters import in_axes as in_axes
from optfn.core.hyperparameters import replace as replace
from optfn.core.hyperparameters import stack as stack
from optfn.core.hyperparameters import unstack as unstack
from optfn.core.leafwise import Leafwise as Leafwise
from optfn.core.in_blocks import in_blocks as in_blocks
from optfn.core.matrix_axes import NO_MATRIX as NO_MATRIX
from optfn.core.matrix_axes import MatrixAxes as MatrixAxes
from optfn.core.matrix_axes import matrices as matrices
from optfn.core.matrix_axes import matrices_and_tables as matrices_and_tables
from optfn.core.matrixwise import Matrixwise as Matrixwise
from optfn.core.metrics import Metrics as Metrics
from optfn.core.metrics import metrics as metrics
from optfn.core.numbers_by_path import times as times
from optfn.core.optax_names import missing as _missing
from optfn.core.paths import by_path as by_path
from optfn.core.placement import Along as Along
from optfn.core.schedule import Schedule as Schedule
from optfn.core.slot_kinds import NonNegative as NonNegative
from optfn.core.slot_kinds import Signed as Signed
from optfn.core.state import Context as Context
from optfn.core.state import State as State
from optfn.core.summary import Summary as Summary
from optfn.core.summary import summary as summary
from optfn.core.transform import Transform as Transform
from optfn.core.updates_kind import Updates as Updates
from optfn.core.wrapper import Wrapper as Wrapper

# Low precision, and the memory of the host.
from optfn.storage.offload import offload as offload
from optfn.storage.params import compensated as compensated
from optfn.storage.params import master as master
from optfn.storage.params import master_params as master_params
from optfn.storage.store import convert_state as convert_state
from optfn.storage.store import store as store

# Composition.
from optfn.compose.accumulate import accumulate as accumulate
from optfn.compose.across import across as across
from optfn.compose.averaging import ema_nesterov as ema_nesterov
from optfn.compose.averaging import primal_averaging as primal_averaging
from optfn.compose.averaging import schedule_free as schedule_free
from optfn.compose.chain import chain as chain
from optfn.compose.conditional import conditionally_mask as conditionally_mask
from optfn.compose.conditional import conditionally_transform as conditionally_transform
from optfn.compose.finite import apply_if_finite as apply_if_finite
from optfn.compose.finite import raise_if_gave_up as raise_if_gave_up
from optfn.compose.finite import skip_nonfinite as skip_nonfinite
from optfn.compose.gradient_signs import cautious as cautious
from optfn.compose.gradient_signs import with_gradient_signs as with_gradient_signs
from optfn.compose.graft import graft as graft
from optfn.compose.interop import from_optax as from_optax
from optfn.compose.interop import to_optax as to_optax
from optfn.compose.leaf_rates import with_leaf_rates as with_leaf_rates
from optfn.compose.lookahead import lookahead as lookahead
from optfn.compose.loss_scale import current_loss_scale as current_loss_scale
from optfn.compose.loss_scale import loss_scale as loss_scale
from optfn.compose.mechanic import mechanize as mechanize
from optfn.compose.monitor import monitor as monitor
from optfn.compose.noise_scale import NoiseScale as NoiseScale
from optfn.compose.noise_scale import exact_noise_scale as exact_noise_scale
from optfn.compose.noise_scale import gradient_noise_scale as gradient_noise_scale
from optfn.compose.flatten import flatten as flatten
from optfn.compose.on_mesh import on_mesh as on_mesh
from optfn.compose.param_averages import ema_of_params as ema_of_params
from optfn.compose.param_averages import mean_of_params as mean_of_params
from optfn.compose.param_groups import param_groups as param_groups
from optfn.compose.partition import freeze as freeze
from optfn.compose.partition import masked as masked
from optfn.compose.partition import partition as partition
from optfn.compose.partition import set_to_zero as set_to_zero
from optfn.compose.partition_matrices import matrix_labels as matrix_labels
from optfn.compose.partition_matrices import partition_matrices as partition_matrices
from optfn.compose.projected import projected as projected
from optfn.compose.qk_clip import qk_clip as qk_clip
from optfn.compose.restart import own_step as own_step
from optfn.compose.restart import reset as reset
from optfn.compose.sam import sam as sam
from optfn.compose.spikes import skip_spikes as skip_spikes
from optfn.compose.staggered import staggered as staggered

# The training loop.
from optfn.microbatching import microbatch as microbatch
from optfn.privacy import noisy_mean as noisy_mean
from optfn.privacy import per_example_global_norm_clip as per_example_global_norm_clip
from optfn.privacy import per_example_layer_norm_clip as per_example_layer_norm_clip
from optfn.privacy import private_mean as private_mean

# Stages that are no algorithm of their own.
from optfn.transforms.clip import adaptive_grad_clip as adaptive_grad_clip
from optfn.transforms.clip import clip as clip
from optfn.transforms.clip import clip_by_block_rms as clip_by_block_rms
from optfn.transforms.clip import clip_by_global_norm as clip_by_global_norm
from optfn.transforms.clip import clip_by_norm as clip_by_norm
from optfn.transforms.corrections import correct_by_mars as correct_by_mars
from optfn.transforms.corrections import orthogonalize_to_params as orthogonalize_to_params
from optfn.transforms.decay import add_decayed_weights as add_decayed_weights
from optfn.transforms.decay import add_cautious_decay as add_cautious_decay
from optfn.transforms.decay import descend_then_decay as descend_then_decay
from optfn.transforms.decay import (
    descend_with_corrected_decay as descend_with_corrected_decay,
)
from optfn.transforms.decay import (
    descend_with_independent_decay as descend_with_independent_decay,
)
from optfn.transforms.matrices import clip_by_matrix_rms as clip_by_matrix_rms
from optfn.transforms.matrices import newton_schulz as newton_schulz
from optfn.transforms.matrices import scale_by_matrix_shape as scale_by_matrix_shape
from optfn.transforms.matrix_norms import equalize_rows as equalize_rows
from optfn.transforms.matrix_norms import normalize_matrices as normalize_matrices
from optfn.transforms.matrix_norms import scale_by_row_moment as scale_by_row_moment
from optfn.transforms.momentum import ema as ema
from optfn.transforms.momentum import trace as trace
from optfn.transforms.nans import zero_nans as zero_nans
from optfn.transforms.noise import add_noise as add_noise
from optfn.transforms.plateau import reduce_on_plateau as reduce_on_plateau
from optfn.transforms.project import keep_params_nonnegative as keep_params_nonnegative
from optfn.transforms.scale import negate as negate
from optfn.transforms.scale import scale as scale
from optfn.transforms.scale import scale_by_layer_decay as scale_by_layer_decay
from optfn.transforms.scale import scale_by_learning_rate as scale_by_learning_rate
from optfn.transforms.scale import scale_by_schedule as scale_by_schedule
from optfn.transforms.size import centralize as centralize
from optfn.transforms.size import normalize as normalize
from optfn.transforms.size import normalize_by_update_norm as normalize_by_update_norm
from optfn.transforms.size import scale_by_param_block_norm as scale_by_param_block_norm
from optfn.transforms.size import scale_by_param_block_rms as scale_by_param_block_rms
from optfn.transforms.sphere import hyperball as hyperball

# Optimizers and their directions.
from optfn.optimizers.adaptive.cocob import cocob as cocob
from optfn.optimizers.adaptive.cocob import scale_by_cocob as scale_by_cocob
from optfn.optimizers.adaptive.d_adaptation import dadapt_adamw as dadapt_adamw
from optfn.optimizers.adaptive.d_adaptation import prodigy as prodigy
from optfn.optimizers.adaptive.d_adaptation import scale_by_dadapt_adamw as scale_by_dadapt_adamw
from optfn.optimizers.adaptive.d_adaptation import scale_by_prodigy as scale_by_prodigy
from optfn.optimizers.adaptive.dog import dog as dog
from optfn.optimizers.adaptive.dog import dowg as dowg
from optfn.optimizers.adaptive.dog import (
    scale_by_distance_over_gradients as scale_by_distance_over_gradients,
)
from optfn.optimizers.adaptive.dog import scale_by_dog as scale_by_dog
from optfn.optimizers.adaptive.dog import scale_by_dowg as scale_by_dowg
from optfn.optimizers.adaptive.polyak import momo as momo
from optfn.optimizers.adaptive.polyak import momo_adam as momo_adam
from optfn.optimizers.adaptive.polyak import polyak_sgd as polyak_sgd
from optfn.optimizers.adaptive.polyak import scale_by_momo as scale_by_momo
from optfn.optimizers.adaptive.polyak import scale_by_momo_adam as scale_by_momo_adam
from optfn.optimizers.adaptive.polyak import scale_by_polyak as scale_by_polyak
from optfn.optimizers.adaptive.schedule_free import schedule_free_adamw as schedule_free_adamw
from optfn.optimizers.adaptive.schedule_free import schedule_free_sgd as schedule_free_sgd
from optfn.optimizers.curvature.sophia import (
    given_hessian_diagonal as given_hessian_diagonal,
)
from optfn.optimizers.curvature.sophia import (
    hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian,
)
from optfn.optimizers.curvature.sophia import scale_by_sophia as scale_by_sophia
from optfn.optimizers.curvature.sophia import sophia as sophia
from optfn.optimizers.elementwise.adadelta import adadelta as adadelta
from optfn.optimizers.elementwise.adadelta import scale_by_adadelta as scale_by_adadelta
from optfn.optimizers.elementwise.adagrad import adagrad as adagrad
from optfn.optimizers.elementwise.adagrad import scale_by_rss as scale_by_rss
from optfn.optimizers.elementwise.adam import adam as adam
from optfn.optimizers.elementwise.adam import adamw as adamw
from optfn.optimizers.elementwise.adam import amsgrad as amsgrad
from optfn.optimizers.elementwise.adam import nadam as nadam
from optfn.optimizers.elementwise.adam import nadamw as nadamw
from optfn.optimizers.elementwise.adam import scale_by_adam as scale_by_adam
from optfn.optimizers.elementwise.adam import scale_by_amsgrad as scale_by_amsgrad
from optfn.optimizers.elementwise.adamax import adamax as adamax
from optfn.optimizers.elementwise.adamax import adamaxw as adamaxw
from optfn.optimizers.elementwise.adamax import scale_by_adamax as scale_by_adamax
from optfn.optimizers.elementwise.adan import adan as adan
from optfn.optimizers.elementwise.adan import scale_by_adan as scale_by_adan
from optfn.optimizers.elementwise.ademamix import ademamix as ademamix
from optfn.optimizers.elementwise.ademamix import scale_by_ademamix as scale_by_ademamix
from optfn.optimizers.elementwise.ademamix import (
    scale_by_simplified_ademamix as scale_by_simplified_ademamix,
)
from optfn.optimizers.elementwise.ademamix import simplified_ademamix as simplified_ademamix
from optfn.optimizers.elementwise.adopt import adopt as adopt
from optfn.optimizers.elementwise.adopt import scale_by_adopt as scale_by_adopt
from optfn.optimizers.elementwise.belief import acprop as acprop
from optfn.optimizers.elementwise.belief import adabelief as adabelief
from optfn.optimizers.elementwise.belief import scale_by_acprop as scale_by_acprop
from optfn.optimizers.elementwise.belief import scale_by_belief as scale_by_belief
from optfn.optimizers.elementwise.grams import grams as grams
from optfn.optimizers.elementwise.laprop import laprop as laprop
from optfn.optimizers.elementwise.laprop import scale_by_laprop as scale_by_laprop
from optfn.optimizers.elementwise.lion import lion as lion
from optfn.optimizers.elementwise.lion import scale_by_lion as scale_by_lion
from optfn.optimizers.elementwise.madgrad import madgrad as madgrad
from optfn.optimizers.elementwise.madgrad import scale_by_madgrad as scale_by_madgrad
from optfn.optimizers.elementwise.optimistic import optimistic_adam_v2 as optimistic_adam_v2
from optfn.optimizers.elementwise.optimistic import (
    optimistic_gradient_descent as optimistic_gradient_descent,
)
from optfn.optimizers.elementwise.optimistic import (
    scale_by_optimistic_gradient as scale_by_optimistic_gradient,
)
from optfn.optimizers.elementwise.quasi_hyperbolic import qhadam as qhadam
from optfn.optimizers.elementwise.quasi_hyperbolic import qhm as qhm
from optfn.optimizers.elementwise.quasi_hyperbolic import scale_by_qhadam as scale_by_qhadam
from optfn.optimizers.elementwise.quasi_hyperbolic import scale_by_qhm as scale_by_qhm
from optfn.optimizers.elementwise.radam import radam as radam
from optfn.optimizers.elementwise.radam import scale_by_radam as scale_by_radam
from optfn.optimizers.elementwise.rmsprop import rmsprop as rmsprop
from optfn.optimizers.elementwise.rmsprop import scale_by_rms as scale_by_rms
from optfn.optimizers.elementwise.rmsprop import scale_by_stddev as scale_by_stddev
from optfn.optimizers.elementwise.rprop import rprop as rprop
from optfn.optimizers.elementwise.rprop import scale_by_rprop as scale_by_rprop
from optfn.optimizers.elementwise.sgd import momentum as momentum
from optfn.optimizers.elementwise.sgd import noisy_sgd as noisy_sgd
from optfn.optimizers.elementwise.sgd import sgd as sgd
from optfn.optimizers.elementwise.sign import scale_by_sign as scale_by_sign
from optfn.optimizers.elementwise.sign import sign_sgd as sign_sgd
from optfn.optimizers.elementwise.sign import signum as signum
from optfn.optimizers.elementwise.yogi import scale_by_yogi as scale_by_yogi
from optfn.optimizers.elementwise.yogi import yogi as yogi
from optfn.optimizers.layerwise.adafactor import adafactor as adafactor
from optfn.optimizers.layerwise.adafactor import scale_by_factored_rms as scale_by_factored_rms
from optfn.optimizers.layerwise.adam_mini import adam_mini as adam_mini
from optfn.optimizers.layerwise.adam_mini import scale_by_adam_mini as scale_by_adam_mini
from optfn.optimizers.layerwise.novograd import novograd as novograd
from optfn.optimizers.layerwise.novograd import scale_by_novograd as scale_by_novograd
from optfn.optimizers.layerwise.sm3 import scale_by_sm3 as scale_by_sm3
from optfn.optimizers.layerwise.sm3 import sm3 as sm3
from optfn.optimizers.layerwise.stable_adam import (
    scale_by_stable_adamw as scale_by_stable_adamw,
)
from optfn.optimizers.layerwise.stable_adam import stable_adamw as stable_adamw
from optfn.optimizers.layerwise.trust_ratio import fromage as fromage
from optfn.optimizers.layerwise.trust_ratio import lamb as lamb
from optfn.optimizers.layerwise.trust_ratio import lars as lars
from optfn.optimizers.layerwise.trust_ratio import (
    retract_by_learning_rate as retract_by_learning_rate,
)
from optfn.optimizers.layerwise.trust_ratio import scale_by_trust_ratio as scale_by_trust_ratio
from optfn.optimizers.matrix.kl import kl_shampoo as kl_shampoo
from optfn.optimizers.matrix.kl import kl_soap as kl_soap
from optfn.optimizers.matrix.kl import scale_by_kl_shampoo as scale_by_kl_shampoo
from optfn.optimizers.matrix.kl import scale_by_kl_soap as scale_by_kl_soap
from optfn.optimizers.matrix.apollo import apollo as apollo
from optfn.optimizers.matrix.apollo import apollo_mini as apollo_mini
from optfn.optimizers.matrix.galore import galore as galore
from optfn.optimizers.matrix.apollo import scale_by_apollo as scale_by_apollo
from optfn.optimizers.matrix.galore import scale_by_galore as scale_by_galore
from optfn.optimizers.matrix.dion import dion as dion
from optfn.optimizers.matrix.dion import dion2 as dion2
from optfn.optimizers.matrix.dion import scale_by_dion as scale_by_dion
from optfn.optimizers.matrix.dion import scale_by_dion2 as scale_by_dion2
from optfn.optimizers.matrix.kron import kron as kron
from optfn.optimizers.matrix.kron import scale_by_kron as scale_by_kron
from optfn.optimizers.matrix.kron import whiten_by_kron as whiten_by_kron
from optfn.optimizers.matrix.kron import whiten_entries_by_kron as whiten_entries_by_kron
from optfn.optimizers.matrix.muon import muon as muon
from optfn.optimizers.matrix.muon import scale_by_muon as scale_by_muon
from optfn.optimizers.matrix.adamuon import adamuon as adamuon
from optfn.optimizers.matrix.muon_clip import muon_clip as muon_clip
from optfn.optimizers.matrix.normuon import normuon as normuon
from optfn.optimizers.matrix.scion import scale_by_lmo as scale_by_lmo
from optfn.optimizers.matrix.scion import scion as scion
from optfn.optimizers.matrix.scion import start_on_sphere as start_on_sphere
from optfn.optimizers.matrix.soap import scale_by_soap as scale_by_soap
from optfn.optimizers.matrix.soap import soap as soap
from optfn.optimizers.matrix.psgd_pro import psgd_pro as psgd_pro
from optfn.optimizers.matrix.psgd_pro import scale_by_psgd_pro as scale_by_psgd_pro
from optfn.optimizers.matrix.psgd_pro import whiten_by_pro as whiten_by_pro
from optfn.optimizers.matrix.shampoo import scale_by_shampoo as scale_by_shampoo
from optfn.optimizers.matrix.shampoo import shampoo as shampoo
from optfn.optimizers.matrix.splus import descend_by_sides as descend_by_sides
from optfn.optimizers.matrix.splus import scale_by_splus as scale_by_splus
from optfn.optimizers.matrix.splus import splus as splus
from optfn.optimizers.quasi_newton.backtracking import (
    scale_by_backtracking_linesearch as scale_by_backtracking_linesearch,
)
from optfn.optimizers.quasi_newton.box import Box as Box
from optfn.optimizers.quasi_newton.lbfgs import lbfgs as lbfgs
from optfn.optimizers.quasi_newton.lbfgs import scale_by_lbfgs as scale_by_lbfgs
from optfn.optimizers.quasi_newton.lbfgsb import lbfgsb as lbfgsb
from optfn.optimizers.quasi_newton.lbfgsb import scale_by_lbfgsb as scale_by_lbfgsb
from optfn.optimizers.quasi_newton.zoom import (
    scale_by_zoom_linesearch as scale_by_zoom_linesearch,
)

# A whole run.
from optfn.fits.constraints import Constraint as Constraint
from optfn.fits.least_squares import minimize_residuals as minimize_residuals
from optfn.fits.minimize import Minimum as Minimum
from optfn.fits.status import Status as Status
from optfn.fits.minimize import minimize as minimize
from optfn.fits.minimize import value_and_grad_from_state as value_and_grad_from_state
from optfn.fits.watching import Iterate as Iterate

# From a narrow model to a wide one.
from optfn.width_transfer import WidthTransfer as WidthTransfer
from optfn.width_transfer import width_transfer as width_transfer

# From and to configuration files.
from optfn.config.names import configurable as configurable
from optfn.config.read import from_config as from_config
from optfn.config.write import to_config as to_config

# From and to the state of other libraries.
from optfn.interop.optax_state import from_optax_state as from_optax_state
from optfn.interop.optax_state import to_optax_state as to_optax_state
from optfn.interop.torch_state import from_torch_state as from_torch_state

# Projections, recipes and schedules are namespaces of their own.
from optfn import projections as projections
from optfn import recipes as recipes
from optfn import schedules as schedules

__version__ = "0.1.0"


# Training needs neither, so they are loaded by whoever asks for them.
_ON_DEMAND = ("sweep", "testing")


if not _typing.TYPE_CHECKING:  # which would take any name for a function

    def __getattr__(name: str) -> object:
        if name in _ON_DEMAND:
            return _import_module(f"{__name__}.{name}")
        raise _missing(__name__, name)
