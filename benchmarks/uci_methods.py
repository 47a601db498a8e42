"""The methods of `uci.py`: from one split of a set, in standardised units, to predictions at its test inputs."""

import dataclasses
import functools
from typing import Any

import numpy as np

MAX_PRIOR_FIT = 600  # rows that hyper-parameters are fitted to; Sun et al. 2019 take up to 1000
SMOOTH_ONLY = ("wine",)  # a rough part learns the repeated rows of this set by heart, with noise 0


@dataclasses.dataclass
class Problem:
    """A split in standardised units; what methods share is fitted when it is first asked for."""

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    key: Any
    args: Any

    @functools.cached_property
    def smooth(self):
        """A squared-exponential process with a length scale per feature, and the noise, by marginal likelihood."""
        import bnnwide as bw

        d = self.x.shape[1]
        start = {"smooth": 1.0} | {f"smooth_length{i}": d**0.5 for i in range(d)}
        few, _ = bw.functional.GPPrior(smooth_kernel, hyper=start).fit(
            *self._rows(300), noise_prior(), num_steps=30, tolerance=1e-4
        )
        return self._refine(few, 20)

    @functools.cached_property
    def process(self):
        """The same with a rough part, a product of Matern 3/2 kernels with length scales of its own."""
        import bnnwide as bw

        if self.name in SMOOTH_ONLY:
            return self.smooth
        prior, _ = self.smooth
        d, lengths = self.x.shape[1], prior.numbers
        start = (
            lengths | {"rough": 0.3} | {f"rough_length{i}": min(lengths[f"smooth_length{i}"], 10.0) for i in range(d)}
        )
        return self._refine(bw.functional.GPPrior(full_kernel, hyper=start), 40)

    def _refine(self, prior, num_steps):
        return prior.fit(*self._rows(MAX_PRIOR_FIT), noise_prior(), num_steps=num_steps, tolerance=1e-4)

    def _rows(self, number):
        """Return training rows for hyper-parameters; one that is repeated, target and all, counts once.

        An eighth of the wines are there twice. Counted twice, they say that there is no noise, and short length scales.
        """
        _, first = np.unique(np.concatenate([self.x, self.y], axis=1), axis=0, return_index=True)
        rows = np.sort(first)[:number]
        return self.x[rows], self.y[rows]


def noise_prior():
    """A weak prior of the noise, which keeps its scale from falling to 0 where a rough process explains everything."""
    import numpyro.distributions as dist

    import bnnwide as bw

    return bw.Gaussian(dist.LogNormal(np.log(0.1), 1.0))


def lengths_of(numbers, part):
    import jax.numpy as jnp

    return jnp.stack([numbers[f"{part}_length{i}"] for i in range(sum(f"{part}_length" in name for name in numbers))])


def smooth_kernel(**numbers):
    """smooth^2 exp(-|a - b|^2 / 2), inputs in units of their length scales."""
    import tinygp

    lengths = lengths_of(numbers, "smooth")
    return lambda a, b: numbers["smooth"] ** 2 * tinygp.kernels.ExpSquared()(a / lengths, b / lengths)


def full_kernel(**numbers):
    """`smooth_kernel` plus rough^2 prod_i (1 + r_i) exp(-r_i), r_i = sqrt(3) |a_i - b_i| in units of its length."""
    import jax.numpy as jnp

    smooth, lengths = smooth_kernel(**numbers), lengths_of(numbers, "rough")

    def kernel(a, b):
        r = 3**0.5 * jnp.abs((a / lengths)[:, None] - (b / lengths)[None])
        return smooth(a, b) + numbers["rough"] ** 2 * jnp.exp(jnp.sum(jnp.log1p(r) - r, axis=-1))

    return kernel


def log_density(y, mean, sd):
    """log N(y; mean, sd^2), averaged as a density over a leading axis of draws, (s, t, 1) to (t,)."""
    from scipy.special import logsumexp

    each = -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return logsumexp(each[..., 0], axis=0) - np.log(len(each))


def of_prediction(problem, pred):
    mean = np.asarray(pred.mean)
    return mean, log_density(problem.y_test, mean[None], np.sqrt(np.asarray(pred.variance))[None])


def gp(problem, which="process"):
    """The exact posterior of the process itself."""
    prior, noise = getattr(problem, which)
    return of_prediction(problem, prior.posterior(problem.x, problem.y, noise).predict(problem.x_test))


def tanh_network(width):
    import bnnwide as bw

    return bw.Dense(width, w_scale=2.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0, b_scale=1.0)


def relu_network(width):
    """Weights N(0, 1 / fan_in), as in published work on weight-space inference."""
    import bnnwide as bw

    return bw.Dense(width, b_scale=1.0) >> bw.Relu() >> bw.Dense(1, b_scale=1.0)


def functional(problem, num_points=50, num_steps=None, learning_rate=0.03):
    """Function-space variational inference, factorised Gaussian weights, the smooth process as prior."""

    from bnnwide.functional import Factorised, FunctionalELBO, Measurement, fit

    prior, noise = problem.smooth
    points = min(num_points, len(problem.x))
    # A KL at a part of the training inputs is below that at all of them: weighted up by their ratio.
    objective = FunctionalELBO(
        prior, measurement=Measurement(points, 0), score="linearised", num_samples=4, noise=0.03,
        weight=len(problem.x) / points,
    )  # fmt: skip
    net = tanh_network(problem.args.width)
    found = fit(
        net, prior, noise, problem.x, problem.y, key=problem.key, objective=objective, batch_size=50,
        family=Factorised(net, problem.x.shape[1:], init_scale=0.02), learning_rate=learning_rate,
        num_steps=num_steps or problem.args.steps,
    )  # fmt: skip
    return of_draws(problem, found, noise)


def wave_network(numbers, width, num_points):
    """A wide layer of waves, sqrt(2) sin(w x + pi/4), whose limit is the process: w normal, and Student-t.

    To these come short, faint ones, half as many again as points (if there are any), which tell all points apart: where
    the others do not, their covariance there would be singular to rounding, and the prior not the process' own.
    """
    import jax.numpy as jnp

    import bnnwide as bw

    lengths = {part: np.asarray(lengths_of(numbers, part)) for part in ("smooth", "rough") if part in numbers}
    counts = {part: width // len(lengths) for part in lengths} | ({"short": 3 * num_points // 2} if num_points else {})
    sizes = {part: numbers[part] for part in lengths} | {"short": 0.003 * numbers["smooth"]}
    d, total = len(lengths["smooth"]), sum(counts.values())
    lengths["short"] = np.full(d, 0.25)

    def waves(part, w, x):
        # Student-t with three degrees of freedom in every direction apart: the kernel is a product over features.
        directions = w[0] if part == "smooth" else w[0] * (3 / jnp.sum(w[1:] ** 2, axis=0)) ** 0.5
        return sizes[part] * (2 * total / counts[part]) ** 0.5 * jnp.sin(x / lengths[part] @ directions + jnp.pi / 4)

    start = {part: np.zeros((1 + 3 * (part != "smooth"), d, count)) for part, count in counts.items()}
    return bw.from_features(
        lambda w, x: jnp.concatenate([waves(part, w[part], x) for part in counts], axis=1), start, 1
    )


def functional_wide(problem):
    """Function-space variational inference on the wide network, its readout repriorised, the process as prior.

    Hidden weights start as points; draws of the function give the moments of the KL.
    """
    import jax.numpy as jnp

    from bnnwide.functional import FunctionalELBO, Measurement, fit
    from bnnwide.functional.families import make_family

    prior, noise = problem.process
    net = wave_network(prior.numbers, problem.args.wide, 0)
    family = make_family("repriorised", net, jnp.asarray(problem.x), jnp.asarray(problem.y), noise)
    family = dataclasses.replace(family, init_scale=0.003)
    objective = FunctionalELBO(prior, measurement=Measurement(20, 20), score="gaussian", num_samples=16, noise=0.003)
    found = fit(
        net, prior, noise, problem.x, problem.y, key=problem.key, objective=objective, family=family,
        learning_rate=0.003, num_steps=60,
    )  # fmt: skip
    return of_draws(problem, found, noise)


def of_draws(problem, found, noise):
    import jax

    draws = np.asarray(found.draws(jax.random.fold_in(problem.key, 1), problem.x_test, 500))
    return draws.mean(0), log_density(problem.y_test, draws, float(noise.scale))


def wide(problem, at_test=False):
    """A wide network with the process' prior, exact at points, by SplitHMC; between points it interpolates."""
    import jax
    import numpyro

    import bnnwide as bw

    prior, noise = problem.process
    points = np.concatenate([problem.x, problem.x_test]) if at_test else problem.x
    net = wave_network(prior.numbers, problem.args.wide, len(points))
    model = bw.functional_bnn(net, prior, points, noise, input_collapse=False)
    # One chain; its draws of the hidden weights are independent, as the likelihood says nothing of these.
    draws = 2 if at_test else problem.args.draws
    mcmc = numpyro.infer.MCMC(bw.SplitHMC(model), num_warmup=2, num_samples=draws, progress_bar=False)
    mcmc.run(problem.key, problem.x, problem.y, extra_fields=("accept_prob",))
    print(f"  accept {float(np.mean(mcmc.get_extra_fields()['accept_prob'])):.4f}", flush=True)
    pred = bw.predict(model, mcmc.get_samples(), problem.x, problem.y, problem.x_test, key=jax.random.key(0))
    return of_prediction(problem, pred)


def laplace(problem):
    """Laplace in function space, with the smooth process and its noise."""
    from bnnwide.functional import Measurement, laplace

    prior, noise = problem.smooth
    found = laplace(
        tanh_network(problem.args.width), prior, noise, problem.x, problem.y, key=problem.key,
        num_steps=problem.args.steps, measurement=Measurement(50, 50), learning_rate=0.01,
    )  # fmt: skip
    return of_prediction(problem, found.predict(problem.x_test))


def mean_field(problem):
    """Mean-field variational inference on the weights, under their own prior; the noise learned."""
    import numpyro.distributions as dist

    import bnnwide as bw

    model = bw.bnn(relu_network(problem.args.width), bw.Gaussian(dist.LogNormal(np.log(0.3), 1.0)), "standard")
    run = bw.comparators.mean_field(
        model, problem.x, problem.y, key=problem.key, num_steps=6000, learning_rate=0.01, num_samples=500,
    )  # fmt: skip
    draws = run.get_samples()
    mean, _ = bw.predict_draws(model, draws, problem.x, problem.y, problem.x_test)
    mean, scale = np.asarray(mean), np.asarray(draws["noise_scale"])[:, None, None]
    return mean.mean(0), log_density(problem.y_test, mean, scale)


def noisy(problem, family):
    """Noisy natural gradient on the weights, under their own prior; the noise by steps of expectation maximisation."""
    import bnnwide as bw

    noise, params = 0.3, None
    for _ in range(8):
        post = bw.natgrad.noisy_vi(
            relu_network(problem.args.width), bw.Gaussian(noise), problem.x, problem.y, key=problem.key, family=family,
            num_steps=800, learning_rate=0.1, decay=0.05, max_kl=3, params=params, batch_size=50,
        )  # fmt: skip
        seen, params = post.predict(problem.x), post.mean
        noise = float(np.sqrt(np.mean((problem.y - seen.mean) ** 2 + seen.epistemic)))
    pred = post.sample(problem.key, 500).predict(problem.x_test)
    return of_prediction(problem, dataclasses.replace(pred, aleatoric=np.full_like(pred.mean, noise**2)))


METHODS = {
    "gp": gp,
    "gp-smooth": functools.partial(gp, which="smooth"),
    "wide": functools.partial(wide, at_test=True),
    "wide-between": wide,
    "functional": functional,
    "functional-wide": functional_wide,
    "functional-slow": functools.partial(functional, num_steps=12_000, learning_rate=0.01),
    "laplace": laplace,
    "mean-field": mean_field,
    "noisy-kfac": functools.partial(noisy, family="kfac"),
    "noisy-ekfac": functools.partial(noisy, family="ekfac"),
    "noisy-diag": functools.partial(noisy, family="diag"),
}
