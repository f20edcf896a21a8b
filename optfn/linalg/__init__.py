"""Linear algebra of matrix optimizers, batched over leading axes."""

from optfn.linalg.adjoint import adjoint as adjoint
from optfn.linalg.eigenbasis import eigenbasis as eigenbasis
from optfn.linalg.eigenbasis import power_step as power_step
from optfn.linalg.eigenbasis import refined_eigenbasis as refined_eigenbasis
from optfn.linalg.norms import Bounds as Bounds
from optfn.linalg.norms import spectral_norm as spectral_norm
from optfn.linalg.norms import spectral_norm_bounds as spectral_norm_bounds
from optfn.linalg.orthogonal import OBLONG as OBLONG
from optfn.linalg.orthogonal import POLYNOMIALS as POLYNOMIALS
from optfn.linalg.orthogonal import orthogonalize as orthogonalize
from optfn.linalg.orthogonal import polar as polar
from optfn.linalg.orthogonal import polynomials as polynomials
from optfn.linalg.roots import inverse_root as inverse_root
from optfn.linalg.roots import inverse_root_newton as inverse_root_newton
from optfn.linalg.singular import leading_vectors as leading_vectors
