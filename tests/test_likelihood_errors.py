"""What likelihoods and their models refuse, and what odd targets they take."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import bnnwide as bw

N, D = 6, 2
X = np.random.default_rng(0).normal(size=(N, D))
LABELS = np.array([0, 2, 1, 1, 0, 2])
COUNTS = np.array([0, 3, 1, 1, 0, 7])
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("only_the_librarys_own_checks")


def net(outputs):
    return bw.Dense(8, b_scale=0.1) >> bw.Gelu() >> bw.Dense(outputs)


def classes(y, outputs=3):
    return lambda: bw.bnn(net(outputs), bw.Categorical())(X, y)


def counts(y):
    return lambda: bw.bnn(net(1), bw.Poisson())(X, y)


CASES = {
    "label too large": (classes(np.where(LABELS == 2, 3, LABELS)),
        "`bnn`: y must be labels, whole numbers from 0 to 2 for Categorical; got 3, one of 2 such entries"),
    "label negative": (classes(LABELS - 1), "`bnn`: y must be labels, whole numbers from 0 to 2 for Categorical; got"),
    "label fractional": (classes(LABELS + 0.5), "`bnn`: y must be labels, whole numbers from 0 to 2 for Categorical"),
    "label NaN": (classes(np.where(LABELS == 2, np.nan, LABELS)), "`bnn`: y must be finite; got 2 NaN or infinite"),
    "one-hot": (classes(np.eye(3)[LABELS]),
        "`bnn`: y must have shape (6,), integer labels, for Categorical; got (6, 3); turn one-hot rows into labels "
        "with y.argmax(axis=1)"),
    "too few labels": (classes(LABELS[:4]), "`bnn`: y must have shape (6,) with n=6 from x; got (4,)"),
    "one class only": (lambda: bw.bnn(net(1), bw.Categorical()),
        "`bnn`: Categorical needs one output per class, at least 2; got a readout Dense(1); for labels 0 and 1"),
    "binary label 2": (lambda: bw.bnn(net(1), bw.Bernoulli())(X, LABELS),
        "`bnn`: y must be labels, 0 or 1, for Bernoulli; got 2, one of 2 such entries"),
    "binary -1": (lambda: bw.bnn(net(1), bw.Bernoulli())(X, np.sign(LABELS - 0.5)), "`bnn`: y must be labels, 0 or 1"),
    "binary columns": (lambda: bw.bnn(net(2), bw.Bernoulli())(X, LABELS[:, None]),
        "`bnn`: y must have shape (n, 2) with k=2 from the readout Dense(2); got (6, 1)"),
    "negative count": (counts(COUNTS - 1),
        "`bnn`: y must be counts, whole numbers of at least 0, for Poisson; got -1, one of 2 such entries"),
    "fractional count": (counts(COUNTS + 0.25), "`bnn`: y must be counts, whole numbers of at least 0, for"),
    "infinite count": (counts(COUNTS / 0.0), "`bnn`: y must be finite"),
    "heads": (lambda: bw.bnn(net(3), bw.HeteroscedasticGaussian()),
        "`bnn`: HeteroscedasticGaussian needs 2 outputs per column of targets; got a readout Dense(3)"),
    "heteroscedastic targets": (lambda: bw.bnn(net(4), bw.HeteroscedasticGaussian())(X, np.zeros((N, 4))),
        "`bnn`: y must have shape (n, 2) with k=2 from the readout Dense(4); got (6, 4)"),
    "scales": (lambda: bw.bnn(net(3), bw.Gaussian(np.ones(2))),
        "`bnn`: scale of Gaussian must be one number or one per target column, k=3; got shape (2,)"),
    "df": (lambda: bw.StudentT(-1.0, 0.1), "`StudentT`: df must be positive and finite; got -1.0"),
    "scale": (lambda: bw.Laplace(0), "`Laplace`: scale must be positive and finite; got 0"),
    "scale prior": (lambda: bw.StudentT(3.0, dist.Normal()), "`StudentT`: the prior on scale must live on the"),
    "scale type": (lambda: bw.HeteroscedasticGaussian("big"), "`HeteroscedasticGaussian`: scale must be a positive"),
    "gp of a scale per output": (lambda: bw.gp.nngp(net(2), X, np.zeros((N, 2)), bw.Gaussian(np.ones(2))),
        "`nngp`: the noise scale must be one number, shared by the outputs; got shape (2,)"),
    "gp of classes": (lambda: bw.gp.nngp(net(2), X, LABELS, bw.Categorical()), "`nngp`: likelihood must be Gaussian"),
    "readout without targets": (lambda: bw.sample_readout("f", jnp.ones((3, 2))),
        "`sample_readout`: outputs must be given where there are no targets; got None"),
    "readout without scale": (lambda: bw.sample_readout("f", jnp.ones((3, 2)), np.ones((3, 1))),
        "`sample_readout`: scale must be given with targets; got None"),
    "readout targets": (lambda: bw.sample_readout("f", jnp.ones((3, 2)), np.ones((4, 1)), 0.1),
        "`sample_readout`: targets must have shape (3, k) with n=3 from psi; got (4, 1)"),
    "readout NaN targets": (lambda: bw.sample_readout("f", jnp.ones((3, 2)), np.full((3, 1), np.nan), 0.1),
        "`sample_readout`: targets must be finite"),
    "readout NaN target beside a missing one": (
        lambda: bw.sample_readout("f", jnp.ones((2, 2)), np.full((2, 1), np.nan), np.asarray([[np.inf], [0.1]])),
        "`sample_readout`: targets must be finite; got 1 NaN or infinite of 2 entries"),
    "readout scale": (lambda: bw.sample_readout("f", jnp.ones((3, 2)), np.ones((3, 1)), -0.1),
        "`sample_readout`: scale must be positive; got -0.1"),
    "readout scale in a traced model": (
        lambda: jax.jit(lambda psi: bw.sample_readout("f", psi, np.ones((3, 1)), -0.1))(jnp.ones((3, 2))),
        "`sample_readout`: scale must be positive; got -0.1"),
    "readout scales": (lambda: bw.sample_readout("f", jnp.ones((3, 2)), np.ones((3, 1)), np.ones(2)),
        "`sample_readout`: scale must be one number, or broadcast to (3, 1) or (n, k) = (3, 1); got (2,)"),
    "params": (lambda: bw.sample_params("f", "mlp", (2,)), "`sample_params`: net must be an architecture"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_says_what_was_expected_and_what_came(name):
    call, message = CASES[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()


def probabilities(y, outputs=3):
    model = bw.bnn(net(outputs), bw.Categorical())
    mcmc = MCMC(bw.SplitHMC(model), num_warmup=50, num_samples=200, progress_bar=False)
    mcmc.run(KEY, X, y)
    return bw.predict(model, mcmc.get_samples(), X, y, X).probs


def test_a_class_that_no_label_shows_keeps_a_probability():
    probs = probabilities(np.where(LABELS == 2, 1, LABELS))
    np.testing.assert_allclose(probs.sum(1), 1.0, rtol=1e-6)
    assert (probs[:, 2] > 0.01).all() and (probs[:, 2].mean() < 1 / 3)


def test_labels_of_one_class_are_taken():
    probs = probabilities(np.zeros(N, int))
    assert (probs[:, 0] > 1 / 3).all() and (probs[:, 1:] > 0.01).all()


def test_whole_numbers_in_floats_and_booleans_are_labels():
    model = bw.bnn(net(3), bw.Categorical())
    x = jnp.asarray(X)
    np.testing.assert_array_equal(model.check_targets("bnn", x, LABELS.astype(float)), LABELS)
    binary = bw.bnn(net(1), bw.Bernoulli())
    np.testing.assert_array_equal(binary.check_targets("bnn", x, LABELS > 0)[:, 0], LABELS > 0)
