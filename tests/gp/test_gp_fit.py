"""Fitted hyper-parameters against a search of their own, and what is held fixed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gp_problems import NET, NOISE, RNG, K, X, Y
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import multivariate_normal

import bnnwide as bw

POINTS = RNG.normal(size=(12, 2))
TARGETS = np.sin(2 * POINTS[:, :1]) + 0.2 * RNG.normal(size=(12, 1))


def network(w=1.0, b=0.5, last=1.0):
    return bw.Dense(4, w_scale=w, b_scale=b) >> bw.Erf() >> bw.Dense(1, w_scale=last)


def evidence(kernel, noise, ridge=0.0):
    law = multivariate_normal(np.zeros(12), kernel + (noise**2 + ridge * np.trace(kernel) / 12) * np.eye(12))
    return law.logpdf(TARGETS[:, 0])


def left_out(kernel, noise):
    inverse = np.linalg.inv(kernel + noise**2 * np.eye(12))
    variance = 1 / np.diag(inverse)
    error = inverse @ TARGETS[:, 0] * variance
    return np.sum(-0.5 * error**2 / variance - 0.5 * np.log(2 * np.pi * variance))


@pytest.mark.parametrize(("objective", "textbook"), [("marginal_likelihood", evidence), ("leave_one_out", left_out)])
def test_the_noise_is_that_of_a_line_search(objective, textbook):
    kernel = np.asarray(network().kernel(POINTS).nngp)
    best = minimize_scalar(lambda log: -textbook(kernel, np.exp(log)), bounds=(-6, 2), method="bounded")
    fit = bw.gp.fit(network(), POINTS, TARGETS, bw.Gaussian(1.0), objective=objective, parameters=("noise",))
    assert fit.converged and fit.net == network()
    np.testing.assert_allclose(fit.likelihood.scale, np.exp(best.x), rtol=1e-3)
    np.testing.assert_allclose(fit.trace[[0, -1]] * 12, [textbook(kernel, 1.0), -best.fun], rtol=1e-6)
    assert np.all(np.diff(fit.trace) >= -1e-12)


def test_all_scales_are_those_of_another_optimiser():
    arccos = jax.jit(lambda w, b, last: network(w, b, last).kernel(POINTS).nngp)

    def loss(logs):
        w, b, last, noise = np.exp(logs)
        return -evidence(np.asarray(arccos(w, b, last)), noise, 0.01)

    best = minimize(loss, np.log([1.0, 0.5, 1.0, 0.3]), method="Nelder-Mead", options={"maxfev": 3000, "fatol": 1e-10})
    fit = bw.gp.fit(network(), POINTS, TARGETS, bw.Gaussian(0.3), ridge=bw.gp.Ridge(0.01))
    np.testing.assert_allclose(fit.trace[-1] * 12, -best.fun, atol=1e-4)
    first, _, last = fit.net.layers
    assert last.b_scale is None
    post = bw.gp.nngp(fit.net, POINTS, TARGETS, fit.likelihood, ridge=bw.gp.Ridge(0.01))
    np.testing.assert_allclose(post.log_marginal_likelihood(), fit.trace[-1] * 12, rtol=1e-8)
    found = [first.w_scale, last.w_scale]
    np.testing.assert_allclose(found, np.exp(best.x[[0, 2]]), rtol=2e-2)
    assert all(isinstance(scale, float) for scale in (*found, first.b_scale, fit.likelihood.scale))


def test_what_is_not_named_stays_and_any_optimiser_will_do():
    fit = bw.gp.fit(
        network(), POINTS, TARGETS, NOISE, parameters=("b_scale",), kernel="ntk", num_steps=4, optimizer=optax.adam(0.1)
    )
    assert len(fit.trace) == 5 and not fit.converged and fit.likelihood == NOISE
    first, _, last = fit.net.layers
    assert (first.w_scale, last.w_scale, last.b_scale) == (1.0, 1.0, None) and first.b_scale != 0.5
    process = bw.gp.ntk(fit.net, POINTS, TARGETS, NOISE, kind="covariance")
    np.testing.assert_allclose(process.log_marginal_likelihood() / 12, fit.trace[-1], rtol=1e-10)
    assert repr(fit).startswith(f"Fit(objective={fit.trace[-1]:.4f} per target, 4 steps, converged=False, Gaussian(")


REFUSED = {
    "objective": (
        lambda: bw.gp.fit(NET, X, Y, NOISE, objective="cv"),
        "`fit`: objective must be one of 'marginal_likelihood', 'leave_one_out'; got 'cv'",
    ),
    "kernel": (lambda: bw.gp.fit(NET, X, Y, NOISE, kernel="rbf"), "`fit`: kernel must be one of 'nngp', 'ntk'; got"),
    "parameters": (
        lambda: bw.gp.fit(NET, X, Y, NOISE, parameters=("width",)), "`fit`: parameters must name something that net=",
    ),
    "no noise": (lambda: bw.gp.fit(NET, X, Y, None), "`fit`: likelihood must be Gaussian(scale), where the search"),
    "steps": (lambda: bw.gp.fit(NET, X, Y, NOISE, num_steps=0), "`fit`: num_steps must be at least 1; got 0"),
    "y": (lambda: bw.gp.fit(NET, X, Y[:2], NOISE), f"`fit`: y must have shape (9, k) with n=9 from x; got (2, {K})"),
    "scale": (
        lambda: bw.gp.fit(bw.Dense(1, w_scale=jnp.zeros(())), X, Y, NOISE),
        "`fit`: w_scale must be positive and finite; got 0.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()
