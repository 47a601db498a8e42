"""Small problems and textbook answers shared by the tests of Gaussian processes."""

import numpy as np

import bnnwide as bw

RNG = np.random.default_rng(0)
N, D, K, T = 9, 3, 2, 5
X, X_TEST = RNG.normal(size=(N, D)), RNG.normal(size=(T, D))
Y = RNG.normal(size=(N, K))
NET = (
    bw.Dense(4, w_scale=1.4, b_scale=0.3)
    >> bw.Erf()
    >> bw.Dense(4, w_scale=1.2, b_scale=0.2)
    >> bw.Erf()
    >> bw.Dense(K, w_scale=1.1, b_scale=0.1)
)
NOISE = bw.Gaussian(0.3)


def kernels(name, net=NET, x=X, x_test=X_TEST):
    """One kernel at (train, train), (test, train), (test, test), as NumPy arrays."""
    pairs = ((x, None), (x_test, x), (x_test, None))
    return tuple(np.asarray(getattr(net.kernel(*pair), name)) for pair in pairs)


def textbook(k_dd, k_td, k_tt, y, diagonal):
    """Mean and covariance of the function given noisy targets."""
    inverse = np.linalg.inv(k_dd + diagonal * np.eye(len(k_dd)))
    return k_td @ inverse @ y, k_tt - k_td @ inverse @ k_td.T


def close(got, wanted, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
