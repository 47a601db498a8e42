"""Prior matching: the distance against closed forms, and a search that finds scales that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import LogNormal

import bnnwide as bw

RNG = np.random.default_rng(0)
X = np.linspace(-1.5, 1.5, 6)[:, None]
TRUTH = bw.Dense(20, w_scale=3.0, b_scale=1.5) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0, b_scale=0.5)
START = bw.Dense(20, w_scale=1.0, b_scale=0.5) >> bw.Tanh() >> bw.Dense(1, w_scale=1.0, b_scale=1.0)


class Own:
    """The prior of a network, known by its draws only."""

    def __init__(self, net):
        self.net = net

    def sample(self, key, x, num_samples):
        draw = lambda key: self.net(self.net.init(key, x.shape[1:]), x)[:, 0]  # noqa: E731
        return jax.jit(jax.vmap(draw))(jax.random.split(key, num_samples))


def test_the_distance_of_two_gaussians():
    """W_2 on a line is (mean difference)^2 + (difference of standard deviations)^2; over directions, an average."""
    a, b = RNG.normal(size=(5_000, 3)), RNG.normal(size=(5_000, 3))
    b = 2.0 * b + [3.0, 0.0, 0.0]
    found = bw.functional.sliced_wasserstein(jax.random.key(0), a, b, num_directions=200)
    # E u_1^2 = 1/3 for a unit vector in three dimensions; standard deviations are 1 and 2 in every direction.
    np.testing.assert_allclose(found**2, 9.0 / 3 + 1.0, rtol=0.08)
    same = bw.functional.sliced_wasserstein(jax.random.key(0), a, a[::-1])
    np.testing.assert_allclose(same, 0.0, atol=1e-12)


def test_the_scales_of_another_networks_prior_are_found():
    found = bw.functional.match_prior(
        START, Own(TRUTH), X, key=jax.random.key(0), num_steps=150, learning_rate=0.1, num_draws=4096, num_directions=40
    )
    kernel = lambda net: np.asarray(net.kernel(X, ntk=False).nngp)  # noqa: E731
    error = lambda net: np.abs(kernel(net) - kernel(TRUTH)).max() / kernel(TRUTH).max()  # noqa: E731
    assert error(START) > 0.5 and error(found) < 0.15
    draws = [Own(net).sample(jax.random.key(7), X, 4000) for net in (TRUTH, START, found)]
    distance = [float(bw.functional.sliced_wasserstein(jax.random.key(1), draws[0], other)) for other in draws[1:]]
    assert distance[1] < 0.25 * distance[0]
    assert all(isinstance(layer.w_scale, float) for layer in (found[0], found[2]))
    assert found[0].width == 20 and repr(found[1]) == repr(START[1])


class Broken:
    def sample(self, key, x, num_samples):
        return jnp.full((num_samples, len(x)), jnp.nan)


def match(net=START, prior=None, points=X, **options):
    prior = Own(TRUTH) if prior is None else prior
    return bw.functional.match_prior(net, prior, points, key=jax.random.key(0), **options)


REFUSED = {
    "net": (TypeError, lambda: match(net=bw.Tanh()), "`match_prior`: net must be a network"),
    "prior": (TypeError, lambda: match(prior=3.0), r"prior must have sample\(key, x, num_samples\)"),
    "learned": (
        ValueError, lambda: match(net=bw.Dense(3, w_scale=LogNormal(0.0, 1.0)) >> bw.Tanh() >> bw.Dense(1)),
        "every scale must be a number",
    ),
    "points": (ValueError, lambda: match(points=X[:, 0]), r"points must have shape \(p, d\)"),
    "draws": (ValueError, lambda: match(num_draws=10), "num_draws must be at least batch_size=256; got 10"),
    "NaN": (ValueError, lambda: match(prior=Broken()), "must be finite"),
    "rate": (ValueError, lambda: match(learning_rate=-1.0), "learning_rate must be positive"),
    "shapes": (
        ValueError, lambda: bw.functional.sliced_wasserstein(jax.random.key(0), X, X[:2]),
        r"b must have shape \(6, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, only_the_librarys_own_checks):
    error, build, message = REFUSED[name]
    with pytest.raises(error, match=message):
        build()
