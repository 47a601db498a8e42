"""Whitening and augmentation: what is done to inputs before a kernel sees them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gp_problems import NET, NOISE, RNG, X_TEST, K, T, X, Y, close

import bnnwide as bw

MANY = RNG.normal(size=(30, 4)) @ RNG.normal(size=(4, 4)) + 3.0
FEW = RNG.normal(size=(6, 12)) @ np.diag(np.linspace(0.1, 2.0, 12)) - 1.0
OTHER = RNG.normal(size=(5, 12))


def whitened(x, x_train, regularisation, relative=True):
    """(x - mean) (C + a I)^(-1/2) through a dense eigendecomposition."""
    mean, d = x_train.mean(0), x_train.shape[1]
    covariance = np.cov(x_train.T, bias=True)
    amount = regularisation * (np.trace(covariance) / d if relative else 1.0)
    values, vectors = np.linalg.eigh(covariance + amount * np.eye(d))
    return (x - mean) @ (vectors / np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("train", [MANY, FEW], ids=["n > d", "n < d"])
def test_zca_is_its_formula(train, relative):
    zca = bw.gp.zca(train, 0.1, relative=relative)
    for x in (train, OTHER[:, : train.shape[1]]):
        close(zca(x), whitened(x, train, 0.1, relative))
    close(jax.jit(lambda zca, x: zca(x))(zca, train), zca(train))


def test_zca_whitens():
    white = bw.gp.zca(MANY, 0.0)(MANY)
    close(np.cov(white.T, bias=True), np.eye(4), atol=1e-10)
    # As near as it can be to the inputs: the map is symmetric and positive.
    map_ = bw.gp.zca(MANY, 0.0)(np.eye(4) + MANY.mean(0))
    close(map_, map_.T)
    assert np.all(np.linalg.eigvalsh(map_) > 0)
    images = FEW.reshape(6, 2, 3, 2)
    close(bw.gp.zca(images)(images), bw.gp.zca(FEW)(FEW).reshape(6, 2, 3, 2))
    # A relative regularisation does not care about units.
    close(bw.gp.zca(100 * MANY, 0.3)(100 * MANY), bw.gp.zca(MANY, 0.3)(MANY))


def test_augmented_is_the_average_of_posteriors():
    flips = [lambda x: x, lambda x: x[:, ::-1], jnp.negative]
    build = lambda x, y: bw.gp.nngp(NET, x, y, NOISE)  # noqa: E731
    ensemble = bw.gp.augmented(build, X, Y, flips, test_augmentations=flips[:2])
    parts = [
        build(np.asarray(train(X)), Y).predict(np.asarray(test(X_TEST)), full_cov=True)
        for train in flips
        for test in flips[:2]
    ]
    got = ensemble.predict(X_TEST, full_cov=True)
    means = np.stack([part.mean for part in parts])
    close(got.mean, means.mean(0))
    close(got.epistemic, np.mean([part.epistemic for part in parts], axis=0) + means.var(0))
    close(got.aleatoric, np.full((T, K), 0.09))
    close(np.diagonal(got.covariance, axis1=1, axis2=2).T, got.epistemic)
    assert ensemble.predict(X_TEST).covariance is None
    alone = bw.gp.augmented(build, X, Y, flips[:1]).predict(X_TEST)
    close(alone.mean, build(X, Y).predict(X_TEST).mean)
    assert repr(ensemble) == "AugmentedEnsemble(members=3, test_augmentations=2)"


def test_negated_inputs_and_targets_make_an_odd_predictor():
    # The kernel of a network without biases knows that f(-x) and f(x) are one law; the data must say which sign.
    both = bw.gp.augmented(lambda x, y: bw.gp.nngp(NET, x, y, NOISE), X, Y, [lambda x: x, jnp.negative])
    close(both.predict(-X_TEST).mean, both.predict(X_TEST).mean)


BUILD = lambda x, y: bw.gp.nngp(NET, x, y, NOISE)  # noqa: E731
REFUSED = {
    "rank": (lambda: bw.gp.zca(MANY[:, 0]), "`zca`: x must have shape (n, d) or (n, *input_shape); got (30,)"),
    "NaN": (lambda: bw.gp.zca(np.full((3, 2), np.nan)), "`zca`: x must be finite; got 6 NaN or infinite of 6 entries"),
    "negative": (lambda: bw.gp.zca(MANY, -0.1), "`zca`: regularisation must be finite, zero or positive; got -0.1"),
    "singular": (
        lambda: bw.gp.zca(FEW, 0.0),
        "`zca`: the covariance of x (n=6, d=12) is singular; got regularisation=0.0; take a larger one",
    ),
    "constant": (
        lambda: bw.gp.zca(np.concatenate([MANY, np.ones((30, 1))], axis=1), 0.0),
        "`zca`: the covariance of x (n=30, d=5) is singular; got regularisation=0.0",
    ),
    "other inputs": (
        lambda: bw.gp.zca(MANY)(FEW),
        "`Zca`: x must hold 4 numbers per input, as in training; got shape (6, 12)",
    ),
    "no augmentation": (
        lambda: bw.gp.augmented(BUILD, X, Y, []),
        "`augmented`: augmentations must hold at least one function; got none",
    ),
    "shape": (
        lambda: bw.gp.augmented(BUILD, X, Y, [lambda x: x[:, :2]]),
        "`augmented`: an augmentation must keep the shape (9, 3); got (9, 2) from <function",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()
