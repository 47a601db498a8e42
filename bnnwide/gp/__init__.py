"""Infinite width as a posterior: NNGP and NTK, training dynamics, hyper-parameters, best practices, large data."""

from bnnwide.gp.augmentation import AugmentedEnsemble, augmented
from bnnwide.gp.blocks import kernel_matrix
from bnnwide.gp.dynamics import TrainingDynamics, max_learning_rate, training_dynamics
from bnnwide.gp.ensemble import TrainedEnsemble, ntk
from bnnwide.gp.fit import Fit, fit
from bnnwide.gp.gradient_flow import gradient_flow
from bnnwide.gp.kernel_operator import KernelOperator
from bnnwide.gp.large import LargeGaussianProcess, large
from bnnwide.gp.posterior import GaussianProcess, Posterior, nngp
from bnnwide.gp.preprocessing import Zca, zca
from bnnwide.gp.regression import Regression, regression
from bnnwide.gp.ridge import Ridge
from bnnwide.gp.schedules import Descent, Flow, Schedule

__all__ = [
    "AugmentedEnsemble",
    "Descent",
    "Fit",
    "Flow",
    "GaussianProcess",
    "KernelOperator",
    "LargeGaussianProcess",
    "Posterior",
    "Regression",
    "Ridge",
    "Schedule",
    "TrainedEnsemble",
    "TrainingDynamics",
    "Zca",
    "augmented",
    "fit",
    "gradient_flow",
    "kernel_matrix",
    "large",
    "max_learning_rate",
    "nngp",
    "ntk",
    "regression",
    "training_dynamics",
    "zca",
]
