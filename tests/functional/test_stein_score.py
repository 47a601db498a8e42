"""The spectral Stein estimator against its defining formulas and known scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnnwide.functional import SteinScore

KEY = jax.random.key(0)


def test_is_the_papers_sum_over_eigenfunctions():
    # Eigenfunctions and their gradients as written, by autodiff, J of them.
    samples = jax.random.normal(KEY, (12, 2))
    width, J = 1.3, 4
    kernel = lambda a, b: jnp.exp(-0.5 * jnp.sum((a - b) ** 2) / width**2)  # noqa: E731
    values, vectors = jnp.linalg.eigh(jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(samples))(samples))

    def psi(z, j):
        return jnp.sqrt(12) / values[j] * vectors[:, j] @ jax.vmap(lambda b: kernel(z, b))(samples)

    def estimate(z):
        kept = range(12 - J, 12)
        beta = [-jnp.mean(jax.vmap(jax.grad(lambda w, j=j: psi(w, j)))(samples), axis=0) for j in kept]
        return sum(b * psi(z, j) for b, j in zip(beta, kept, strict=True))

    points = jax.random.normal(jax.random.key(1), (5, 2))
    score = SteinScore(samples, bandwidth=width, num_eigenfunctions=J)
    np.testing.assert_allclose(score(points), jax.vmap(estimate)(points), rtol=1e-8)


def mixture_draws(key, num):
    which, spread = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(which, 0.4, (num, 1)), -1.5, 1.0) + 0.6 * jax.random.normal(spread, (num, 1))


def mixture_log_prob(z):
    part = lambda weight, at: weight * jnp.exp(-0.5 * (z[0] - at) ** 2 / 0.36)  # noqa: E731
    return jnp.log(part(0.4, -1.5) + part(0.6, 1.0))


ROOT = jnp.array([[1.0, 0.5], [0.0, 0.7]])
LAWS = {
    "normal": (lambda key, num: jax.random.normal(key, (num, 1)), lambda z: -z),
    "correlated": (
        lambda key, num: jax.random.normal(key, (num, 2)) @ ROOT, lambda z: -jnp.linalg.solve(ROOT.T @ ROOT, z.T).T,
    ),
    "mixture": (mixture_draws, jax.vmap(jax.grad(mixture_log_prob))),
}  # fmt: skip


def relative_error(law, num, repeats=4, **options):
    """Root mean squared error over draws of the law, in units of the score's root mean square."""
    draw, truth = LAWS[law]
    total, size = 0.0, 0.0
    for repeat in range(repeats):
        key = jax.random.fold_in(jax.random.fold_in(KEY, repeat), num)
        points = draw(jax.random.fold_in(key, 1), 200)
        total += jnp.mean((SteinScore(draw(key, num), **options)(points) - truth(points)) ** 2)
        size += jnp.mean(truth(points) ** 2)
    return float(jnp.sqrt(total / size))


# The largest errors at 400 draws: what was seen, with a third on top.
@pytest.mark.parametrize(
    ("law", "options", "largest"),
    [
        ("normal", {}, 0.5), ("correlated", {}, 0.37), ("mixture", {"fraction": 0.999}, 0.5),
    ],
)  # fmt: skip
def test_error_falls_with_the_number_of_draws(law, options, largest):
    few, many = (relative_error(law, num, **options) for num in (50, 400))
    assert many < largest
    assert many < 0.75 * few


def test_rate_where_the_eigenfunctions_hold_the_score():
    # The score of a normal is linear; the second eigenfunction of a kernel much wider than the law is close to
    # linear, so that what is left is the Monte-Carlo error, 1/sqrt(M).
    sizes = np.array([32, 256])
    errors = [relative_error("normal", num, 16, bandwidth=8.0, num_eigenfunctions=2) for num in sizes]
    rate = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.65 < rate < -0.35, (rate, errors)


def test_scales_with_the_draws_and_moves_with_them():
    samples, points = jax.random.normal(KEY, (30, 2)), jax.random.normal(jax.random.key(1), (4, 2))
    base = SteinScore(samples)(points)
    moved = SteinScore(10 * samples + 1e3)(10 * points + 1e3)
    np.testing.assert_allclose(10 * moved, base, rtol=1e-5)


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": np.ones((1, 2))}, "`SteinScore`: samples must be at least 2 draws; got 1"),
        ({"samples": np.ones(3)}, "`SteinScore`: samples must have shape"),
        ({"samples": np.full((3, 2), np.nan)}, "`SteinScore`: samples must be finite"),
        ({"fraction": 0.0}, "`SteinScore`: fraction must lie above 0"),
        ({"bandwidth": -1.0}, "`SteinScore`: bandwidth must be positive"),
        ({"num_eigenfunctions": 0}, "`SteinScore`: num_eigenfunctions must be at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SteinScore(**({"samples": np.eye(3)} | options))
