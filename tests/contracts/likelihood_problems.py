"""One small problem for every likelihood: k columns of targets at n inputs, drawn from the likelihood itself."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import bnnwide as bw

N, D = 7, 2
X = np.random.default_rng(0).normal(size=(N, D))

# Likelihood and number of network outputs.
PROBLEMS = {
    "categorical": (bw.Categorical(), 3),
    "bernoulli": (bw.Bernoulli(), 1),
    "two binary targets": (bw.Bernoulli(), 2),
    "poisson": (bw.Poisson(), 1),
    "student t": (bw.StudentT(4.0, 0.3), 2),
    "laplace": (bw.Laplace(0.3), 1),
    "heteroscedastic": (bw.HeteroscedasticGaussian(0.5), 2),
    "student t, learned": (bw.StudentT(4.0, dist.LogNormal(-1.0, 0.3)), 1),
}
GAUSSIANS = {
    "per output": (bw.Gaussian(jnp.asarray([0.2, 0.5])), 2),
    "learned": (bw.Gaussian(dist.LogNormal(-1.0, 0.3)), 2),
    "learned per output": (bw.Gaussian(dist.LogNormal(jnp.full(2, -1.0), 0.3)), 2),
}


def network(outputs, width=9):
    return bw.Dense(width, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(outputs, b_scale=0.3)


def prior_draw(key, likelihood, net, x=X):
    """Draw all sites, the readout among them, and targets (n, k) or (n,) from the model."""
    param_key, noise_key, y_key = jax.random.split(key, 3)
    params = net.init(param_key, x.shape[1:])
    sites = {f"hidden.0.{name}": leaf for name, leaf in params[0].items()}
    for name, prior in likelihood.priors.items():
        sites[name] = prior.sample(noise_key)
    readout = jnp.concatenate([params[-1]["w"], params[-1]["b"][None]])
    y = likelihood.at(sites).law(net(params, x)).sample(y_key)
    return sites, readout, y
