"""Blocked kernels, conjugate gradients and posteriors at large n, against dense formulas in NumPy and SciPy."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

import bnnwide as bw
from bnnwide.arch import Activation, layer
from bnnwide.gp import Ridge
from bnnwide.gp.blocks import kernel_matrix
from bnnwide.gp.iterative import conjugate_gradients
from bnnwide.gp.kernel_operator import KernelOperator
from bnnwide.gp.lanczos import lanczos, log_determinant, square_root
from bnnwide.gp.large import large
from bnnwide.gp.linear import Deflated, Joint, Preconditioned, Shifted
from bnnwide.gp.preconditioner import pivoted_cholesky, precondition


@layer()
@dataclasses.dataclass(frozen=True)
class Wave(Activation):
    """sin(u) + cos(u), whose kernel is exp(-E(u - v)^2 / 2): a dense layer before it makes a squared exponential."""

    def fn(self, u):
        return jnp.sin(u) + jnp.cos(u)

    def dual(self, q11, q12, q22):
        return jnp.exp(q12 - (q11 + q22) / 2)

    def dual_mean(self, q):
        return jnp.exp(-q / 2)


D, N, T, K = 3, 151, 7, 2
W, B, OUT = 1.0, 0.3, 1.3
NET = bw.Dense(8, w_scale=W) >> Wave() >> bw.Dense(1, w_scale=OUT, b_scale=B)
RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.normal(size=(N, D)), RNG.normal(size=(T, D)), RNG.normal(size=(N, K))
NOISE = bw.Gaussian(0.1)


def nngp(x1, x2):
    """The kernel of NET, written out."""
    square = ((x1[:, None] - x2[None]) ** 2).sum(axis=-1)
    return OUT**2 * np.exp(-(W**2) / D * square / 2) + B**2


def ntk(x1, x2):
    """T -> K + w^2 T: 0 -> W^2 x.x'/d -> times the derivative of the dual, which is the dual itself."""
    first = W**2 / D * x1 @ x2.T
    return nngp(x1, x2) + (nngp(x1, x2) - B**2) * first


KERNELS = {"nngp": nngp, "ntk": ntk}
ONE, TWO = jax.devices()[:1], jax.devices()[:2]


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# The kernel as a matrix.


@pytest.mark.parametrize("block_size", [None, 40, 1])
def test_matrix_is_the_kernel(block_size):
    few = X[:11] if block_size == 1 else X
    got = kernel_matrix(NET, few, block_size=block_size)
    for name, values in got._asdict().items():
        assert isinstance(values, np.ndarray) and values.dtype == np.float64
        close(values, KERNELS[name](few, few))
        np.testing.assert_array_equal(values, values.T)
    cross = kernel_matrix(NET, few, X_TEST, block_size=block_size)
    close(cross.nngp, nngp(few, X_TEST))
    close(cross.ntk, ntk(few, X_TEST))


def test_matrix_of_images_without_ntk_in_float32():
    images = RNG.normal(size=(13, 2, 2, 3))
    net = bw.Flatten() >> NET
    got = kernel_matrix(net, images, block_size=4, ntk=False)
    assert got.ntk is None
    close(got.nngp, net.kernel(images).nngp)
    with jax.enable_x64(False):
        single = kernel_matrix(net, images, block_size=4, ntk=False).nngp
    assert single.dtype == np.float32
    close(single, got.nngp, 1e-5)


def test_matrix_shows_its_progress(capsys):
    kernel_matrix(NET, X, block_size=51, progress=True)
    assert "6/6" in capsys.readouterr().err
    kernel_matrix(NET, X, block_size=51)
    assert capsys.readouterr().err == ""


# The kernel as an operator.

V = RNG.normal(size=(N, K))


@pytest.mark.parametrize(("kernel", "devices"), [("nngp", TWO), ("ntk", ONE)], ids=["two devices", "one device"])
def test_product_is_the_dense_one(kernel, devices):
    matrix = KERNELS[kernel](X, X)
    operator = KernelOperator(NET, X, kernel=kernel, block_size=40, devices=devices)
    assert operator.shape == (N, N) and operator.T is operator
    close(operator @ V, matrix @ V, 1e-11)
    close(operator @ V[:, 0], matrix @ V[:, 0], 1e-11)
    # 4 x 4 blocks of 38 x 38: ten pairs.
    for room, held in ((3.5, 3 if devices == ONE else 2), (100, 10)):
        kept = operator.keep(room * 38**2 * 8)
        assert f"kept={held} blocks" in repr(kept)
        close(kept @ V, matrix @ V, 1e-11)


def test_product_of_a_rectangle():
    cross = KernelOperator(NET, X, block_size=40).cross(X_TEST)
    assert cross.shape == (T, N)
    close(cross @ V, nngp(X_TEST, X) @ V, 1e-12)
    close(cross.T @ V[:T], nngp(X, X_TEST) @ V[:T], 1e-12)
    close(cross.keep(2 * 7 * 38 * 8) @ V, nngp(X_TEST, X) @ V, 1e-12)
    close(cross.to_dense(), nngp(X_TEST, X))
    close(cross.columns(np.array([3, 0])), nngp(X_TEST, X)[:, [3, 0]])


def test_parts_of_the_matrix():
    operator = KernelOperator(NET, X, block_size=40)
    matrix = nngp(X, X)
    close(operator.diagonal(), np.diagonal(matrix))
    close(operator.row(5), matrix[5])
    close(operator.columns(np.array([7, 7, 0])), matrix[:, [7, 7, 0]])
    close(operator.to_dense(), matrix)


def test_each_pair_of_blocks_is_evaluated_once():
    entries = []

    @layer()
    @dataclasses.dataclass(frozen=True)
    class Counted(Wave):
        def dual(self, q11, q12, q22):
            jax.debug.callback(lambda: entries.append(q12.size))
            return super().dual(q11, q12, q22)

        def dual_diag(self, q):
            return super().dual(q, q, q)

    operator = KernelOperator(bw.Dense(1) >> Counted() >> bw.Dense(1), X[:80], block_size=20)
    (operator @ V[:80]).block_until_ready()
    jax.effects_barrier()
    # Six pairs of blocks, and four diagonal blocks of which a kernel with itself folds one half away.
    assert sorted(entries) == [210] * 4 + [400] * 6


# Preconditioning.


def test_pivoted_cholesky():
    operator = KernelOperator(NET, X, block_size=40)
    matrix, rank = nngp(X, X), 20
    got = pivoted_cholesky(operator, rank)
    left, columns = matrix.copy(), []
    for pivot in np.asarray(got.pivots):
        # Each pivot is the largest of what the others left.
        assert left[pivot, pivot] >= left.diagonal().max() - 1e-12
        columns.append(left[pivot] / np.sqrt(left[pivot, pivot]))
        left = left - np.outer(columns[-1], columns[-1])
    close(got.factor, np.stack(columns, axis=1), 1e-9)
    close(got.remainder, left.diagonal(), 1e-10)
    assert np.linalg.eigvalsh(left).min() > -1e-12
    assert np.all(np.asarray(got.remainder)[np.asarray(got.pivots)] == 0)


def test_pivoted_cholesky_stops_at_the_rank_of_the_kernel():
    operator = KernelOperator(bw.Dense(1) >> bw.Dense(1), X)
    got = pivoted_cholesky(operator, 10)
    close(got.factor @ got.factor.T, X @ X.T / D)
    assert not np.asarray(got.factor[:, D:]).any() and np.isfinite(got.factor).all()
    assert pivoted_cholesky(operator, 2 * N).factor.shape == (N, N)


def test_preconditioner_is_the_inverse_of_its_matrix():
    approximation = pivoted_cholesky(KernelOperator(NET, X), 20)
    got = precondition(approximation, jnp.asarray(0.01))
    factor = np.asarray(approximation.factor)
    spread = np.array(approximation.remainder)
    pivots = np.asarray(approximation.pivots)
    spread[pivots] = spread.sum() / (N * nngp(X[:1], X[:1])[0, 0]) * nngp(X[:1], X[:1])[0, 0]
    matrix = factor @ factor.T + np.diag(spread + 0.01)
    v = jnp.asarray(V)
    close(got.solve(v), np.linalg.solve(matrix, V), 1e-9)
    close(got.log_det(), np.linalg.slogdet(matrix)[1], 1e-10)
    half = np.asarray(got.half_solve(jnp.eye(N)))
    close(half @ matrix @ half.T, np.eye(N), 1e-9)
    close(got.half_solve_transposed(v), half.T @ V, 1e-10)


# Conjugate gradients.


def test_solutions_and_residuals_are_those_of_the_dense_matrix():
    shift = 0.01
    matrix = nngp(X, X) + shift * np.eye(N)
    operator = Shifted(KernelOperator(NET, X, block_size=40), shift)
    b = np.concatenate([V, np.zeros((N, 1)), 1e6 * V[:, :1], matrix[:, :1]], axis=1)
    preconditioner = precondition(pivoted_cholesky(operator.operator, 50), jnp.asarray(shift))
    plain = conjugate_gradients(operator, b, tolerance=1e-9)
    fast = conjugate_gradients(operator, b, tolerance=1e-9, preconditioner=preconditioner)
    for got in (plain, fast):
        np.testing.assert_allclose(got.value, np.linalg.solve(matrix, b), rtol=1e-6, atol=1e-6)
        assert not np.asarray(got.value[:, K]).any() and got.residual[K] == 0
        left = b - matrix @ np.asarray(got.value)
        np.testing.assert_allclose(got.left, left, rtol=1e-3, atol=1e-12 * np.abs(b).max())
        true = np.linalg.norm(left, axis=0) / np.linalg.norm(b + (b == 0).all(axis=0), axis=0)
        np.testing.assert_allclose(got.residual, true, rtol=2e-2, atol=1e-14)
        assert 1e-11 < got.residual.max() <= 1e-9
    assert 10 * fast.num_iterations < plain.num_iterations
    # A dense matrix is an operator, too.
    close(conjugate_gradients(jnp.asarray(matrix), V, tolerance=1e-9).value, plain.value[:, :K], 1e-5)


def test_a_missed_tolerance_warns_with_its_remedy():
    operator = KernelOperator(NET, X, devices=ONE)
    with pytest.warns(RuntimeWarning, match="after 3 iterations, above tolerance=1.0e-06; raise max_iterations"):
        got = conjugate_gradients(Shifted(operator, 0.01), V, max_iterations=3)
    true = np.linalg.norm(V - (nngp(X, X) + 0.01 * np.eye(N)) @ np.asarray(got.value), axis=0)
    np.testing.assert_allclose(got.residual, true / np.linalg.norm(V, axis=0), rtol=1e-10)
    with pytest.warns(RuntimeWarning, match="rounding allows no more; raise tolerance or the noise scale"):
        conjugate_gradients(Shifted(operator, 1.0), V, tolerance=1e-17)


def test_float32_says_what_it_cannot_reach():
    with jax.enable_x64(False):
        operator = Shifted(KernelOperator(NET, X, devices=ONE), 0.1)
        good = conjugate_gradients(operator, V)
        with pytest.warns(RuntimeWarning, match="rounding allows no more; use float64"):
            best = conjugate_gradients(operator, V, tolerance=1e-7)
    assert good.value.dtype == np.float32 and good.residual.max() < 1e-3
    # The claim of the docstring, 10 eps |K| / shift, give or take.
    assert 1e-7 < best.residual.max() < 20 * np.finfo(np.float32).eps * nngp(X, X).max() / 0.1
    matrix = nngp(X, X) + 0.1 * np.eye(N)
    true = np.linalg.norm(V - matrix @ np.asarray(best.value, np.float64), axis=0) / np.linalg.norm(V, axis=0)
    assert true.max() < 1e-4


def test_an_indefinite_matrix_stops_without_nan():
    matrix = jnp.diag(jnp.asarray([1.0, -1.0, 2.0]))
    with pytest.warns(RuntimeWarning, match="rounding allows no more"):
        got = conjugate_gradients(matrix, np.ones((3, 1)))
    assert np.isfinite(got.value).all() and got.residual[0] > 1e-6


def test_progress_of_conjugate_gradients(capsys):
    conjugate_gradients(jnp.diag(jnp.arange(1.0, 6.0)), V[:5], progress=True)
    shown = capsys.readouterr().err
    assert "5iteration" in shown and "residual" in shown


# Krylov spaces.


def decaying(n=60):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(n, n)))[0]
    return rotation * np.logspace(0, -6, n) @ rotation.T


def test_tridiagonalisation():
    matrix = decaying()
    space = lanczos(jnp.asarray(matrix), V[:60], 12)
    for column in range(K):
        q = np.asarray(space.basis[:, :, column]).T
        close(q.T @ q, np.eye(12), 1e-12)
        off = np.asarray(space.beside[column])
        close(q.T @ matrix @ q, np.diag(space.diagonal[column]) + np.diag(off, 1) + np.diag(off, -1), 1e-12)


def test_square_root():
    matrix = decaying()
    want = linalg.sqrtm(matrix).real @ V[:60]
    errors = []
    for steps in (6, 12, 24, 60):
        got, change = square_root(jnp.asarray(matrix), V[:60], num_steps=steps)
        errors.append(np.linalg.norm(got - want, axis=0))
        # The change of the last quarter of the steps is an estimate of the error, good to an order of magnitude.
        assert np.all(errors[-1] < 5 * np.asarray(change) + 1e-10)
        assert np.all(errors[-1] < np.linalg.norm(V[:60], axis=0) / (2 * steps))
    assert np.all(np.array(errors[1:]) < np.array(errors[:-1])) and errors[-1].max() < 1e-7


def test_square_root_where_the_space_is_exhausted():
    projector = np.zeros((9, 9))
    projector[:2, :2] = 4 * np.eye(2)
    got, change = square_root(jnp.asarray(projector), V[:9], num_steps=8)
    # Rounding of 1e-16 in a zero eigenvalue is 1e-8 in its root.
    close(got, projector @ V[:9] / 2, 1e-7)
    assert change.max() < 1e-7
    got, _ = square_root(jnp.zeros((9, 9)), V[:9])
    assert not np.asarray(got).any()


def test_log_determinant():
    # Exact for a diagonal matrix, whose probes of signs all say the same.
    diagonal = np.linspace(0.5, 3.0, 20)
    value, error = log_determinant(jnp.diag(jnp.asarray(diagonal)), jax.random.key(0))
    close(value, np.log(diagonal).sum(), 1e-10)
    assert error < 1e-10
    matrix = decaying() + 0.1 * np.eye(60)
    value, error = log_determinant(jnp.asarray(matrix), jax.random.key(1), num_probes=200)
    assert 0 < error < 1 and abs(value - np.linalg.slogdet(matrix)[1]) < 4 * error


def test_matrices_made_of_others():
    matrix, factor = nngp(X, X), RNG.normal(size=(N, 4))
    close(Shifted(jnp.asarray(matrix), 0.5) @ jnp.asarray(V), matrix @ V + 0.5 * V, 1e-11)
    close(Deflated(jnp.asarray(matrix), jnp.asarray(factor)) @ jnp.asarray(V), (matrix - factor @ factor.T) @ V, 1e-11)
    n = 100
    parts = [jnp.asarray(part) for part in (matrix[:n, :n], matrix[n:, :n], matrix[:n, n:], matrix[n:, n:])]
    joint = Joint(*parts)
    assert joint.shape == (N, N)
    close(joint @ jnp.asarray(V), matrix @ V, 1e-11)
    preconditioner = precondition(pivoted_cholesky(KernelOperator(NET, X), 40), jnp.asarray(0.01))
    near_one = Preconditioned(jnp.asarray(matrix + 0.01 * np.eye(N)), preconditioner) @ jnp.eye(N)
    half = np.asarray(preconditioner.half_solve(jnp.eye(N)))
    close(near_one, half @ (matrix + 0.01 * np.eye(N)) @ half.T, 1e-9)


# The posterior.


def exact(kernel="nngp", diagonal=0.01):
    """Mean, covariance and log evidence by the textbook."""
    k = KERNELS[kernel]
    matrix = k(X, X) + diagonal * np.eye(N)
    gain = np.linalg.solve(matrix, k(X, X_TEST)).T
    law = stats.multivariate_normal(np.zeros(N), matrix)
    return gain @ Y, k(X_TEST, X_TEST) - gain @ k(X, X_TEST), law.logpdf(Y.T).sum()


OPTIONS = {"rank": 60, "tolerance": 1e-9, "devices": ONE}


@pytest.fixture(scope="module")
def post():
    return large(NET, X, Y, NOISE, batch_size=8000, **OPTIONS)


def test_posterior_is_the_textbook_s(post):
    mean, covariance, _ = exact()
    got = post.predict(X_TEST, full_cov=True)
    close(got.mean, mean, 1e-8)
    close(got.covariance, covariance, 1e-10)
    np.testing.assert_array_equal(got.covariance, got.covariance.T)
    fast = post.predict(X_TEST)
    close(fast.epistemic, np.diagonal(covariance)[:, None].repeat(K, axis=1), 1e-10)
    close(fast.aleatoric, np.full((T, K), 0.01))
    close(post.mean(X_TEST), mean, 1e-7)
    residual = Y - (nngp(X, X) + 0.01 * np.eye(N)) @ np.asarray(post.solution.value)
    want = (np.linalg.norm(residual, axis=0) / np.linalg.norm(Y, axis=0)).max()
    np.testing.assert_allclose(post.residual, want, rtol=2e-2)
    assert 0 < post.residual < 1e-9 and f"after {post.num_iterations} iterations" in repr(post)


def test_posterior_in_blocks_and_batches_on_two_devices():
    mean, covariance, _ = exact("ntk")
    options = OPTIONS | {"devices": TWO, "kernel": "ntk", "block_size": 40, "batch_size": 3, "memory": 1e5}
    got = large(NET, X, Y, NOISE, **options).predict(X_TEST[:6])
    close(got.mean, mean[:6], 1e-8)
    close(got.epistemic[:, 0], np.diagonal(covariance)[:6], 1e-10)


def test_predictions_are_of_second_order_in_the_residual():
    mean, covariance, _ = exact()
    post = large(NET, X, Y, NOISE, rank=20, tolerance=1e-4, devices=ONE)
    assert 1e-6 < post.residual < 1e-4
    got = post.predict(X_TEST)
    over = np.asarray(got.epistemic[:, 0]) - np.diagonal(covariance)
    # At most |residual|^2 / shift, and never negative.
    bound = (1e-4 * np.linalg.norm(nngp(X, X_TEST), axis=0)) ** 2 / 0.01
    assert np.all(over > 0) and np.all(over < bound)
    assert 5 * np.abs(got.mean - mean).max() < np.abs(post.mean(X_TEST) - mean).max() < 1e-2
    full = post.predict(X_TEST, full_cov=True)
    assert np.linalg.eigvalsh(full.covariance - covariance).min() > -1e-12
    close(full.mean, got.mean, 1e-10)
    close(np.diagonal(full.covariance), got.epistemic[:, 0], 1e-10)


def test_posterior_is_the_dense_one_with_a_ridge():
    dense = bw.gp.nngp(NET, X, Y, NOISE, ridge=Ridge(0.02)).predict(X_TEST)
    got = large(NET, X, Y, NOISE, ridge=Ridge(0.02), **OPTIONS).predict(X_TEST)
    for name in ("mean", "epistemic", "aleatoric"):
        close(getattr(got, name), getattr(dense, name), 1e-8)
    none = large(NET, X, Y, None, ridge=Ridge(0.01, relative=False), **OPTIONS).predict(X_TEST)
    close(none.mean, exact()[0], 1e-7)
    assert not np.asarray(none.aleatoric).any()


def test_marginal_likelihood(post):
    value, (log_det, error) = post.log_marginal_likelihood(), post.log_det()
    matrix = nngp(X, X) + 0.01 * np.eye(N)
    assert 1e-6 < error < 2 and abs(log_det - np.linalg.slogdet(matrix)[1]) < 4 * error
    assert abs(value - exact()[2]) < 4 * K / 2 * error
    # With the preconditioner's rank at n nothing is left to estimate.
    whole = large(NET, X, Y, NOISE, **OPTIONS | {"rank": N})
    close(whole.log_marginal_likelihood(), exact()[2], 1e-6)
    assert whole.num_iterations <= 3


def test_samples_have_the_moments_of_the_posterior(post):
    s = 300
    mean, covariance, _ = exact()
    got = np.asarray(post.sample(jax.random.key(0), X_TEST, s))
    assert got.shape == (s, T, K)
    variance = np.diagonal(covariance)
    z = (got.mean(axis=0) - mean) / np.sqrt(variance / s)[:, None]
    assert np.abs(z).max() < 4
    # Var of an entry of a sample covariance of Gaussians: (C_ij^2 + C_ii C_jj) / s, with the mean known.
    off = got - mean
    spread = np.sqrt((covariance**2 + np.outer(variance, variance)) / s)
    for output in range(K):
        z = (off[:, :, output].T @ off[:, :, output] / s - covariance) / spread
        assert np.abs(z).max() < 4.5
    # Outputs are independent of each other.
    z = np.einsum("si,sj->ij", off[:, :, 0], off[:, :, 1]) / s / np.sqrt(np.outer(variance, variance) / s)
    assert np.abs(z).max() < 4.5
    assert np.abs(got[0] - got[1]).min() > 1e-9
    # Columns have keys of their own: the draws do not depend on how they are batched.
    batched = dataclasses.replace(post, batch_size=1600).sample(jax.random.key(0), X_TEST, s)
    close(batched, got, 1e-6)


def test_prior_draws_that_are_off_warn(post, monkeypatch):
    monkeypatch.setattr(importlib.import_module("bnnwide.gp.large"), "ROOT_STEPS", 4)
    with pytest.warns(RuntimeWarning, match="`sample`: prior draws are off by .* rank=2 leaves to the square root"):
        dataclasses.replace(post, rank=2).sample(jax.random.key(0), X_TEST, 1)


def test_posterior_in_float32():
    mean, covariance, _ = exact()
    with jax.enable_x64(False):
        post = large(NET, X, Y, NOISE, rank=60, devices=ONE)
        got, draws = post.predict(X_TEST), post.sample(jax.random.key(0), X_TEST, 1)
    assert {got.mean.dtype, got.epistemic.dtype, draws.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(got.mean, mean, atol=2e-3)
    np.testing.assert_allclose(got.epistemic[:, 0], np.diagonal(covariance), atol=1e-3)


# What is refused.

OPERATOR = KernelOperator(NET, X, block_size=40)
SPOILED = np.where(np.arange(N)[:, None] == 3, np.nan, X)
CASES = {
    "matrix, no batch": (lambda: kernel_matrix(NET, X[0]), "`kernel_matrix`: x1 must have shape (n, d)"),
    "matrix, others": (lambda: kernel_matrix(NET, X, X[:, :2]), "`kernel_matrix`: x2 must have shape (n, 3)"),
    "matrix, NaN": (lambda: kernel_matrix(NET, SPOILED), "`kernel_matrix`: x1 must be finite; got 3 NaN"),
    "matrix, block": (lambda: kernel_matrix(NET, X, block_size=0), "`kernel_matrix`: block_size must be at least 1"),
    "matrix, devices": (lambda: kernel_matrix(NET, X, devices=[]), "`kernel_matrix`: devices must hold at least one"),
    "operator, kernel": (
        lambda: KernelOperator(NET, X, kernel="rbf"),
        "`KernelOperator`: kernel must be one of 'nngp', 'ntk'; got 'rbf'",
    ),
    "operator, NaN": (lambda: KernelOperator(NET, SPOILED), "`KernelOperator`: x1 must be finite; got 3 NaN"),
    "operator, other inputs": (lambda: OPERATOR.cross(X[:, :2]), "`KernelOperator`: x2 must have shape (n, 2)"),
    "product": (lambda: OPERATOR @ V[:-1], "`KernelOperator`: v must have shape (151,) or (151, k); got (150, 2)"),
    "product, rank": (lambda: OPERATOR @ V[None], "`KernelOperator`: v must have shape (151,) or (151, k)"),
    "diagonal": (lambda: OPERATOR.cross(X_TEST).diagonal(), "`KernelOperator`: only a kernel of x1 with itself has"),
    "rank": (lambda: pivoted_cholesky(OPERATOR, 0), "`pivoted_cholesky`: rank must be at least 1; got 0"),
    "b": (
        lambda: conjugate_gradients(OPERATOR, V[:-1]),
        "`conjugate_gradients`: b must have shape (151, k) with n=151 from operator; got (150, 2)",
    ),
    "b, vector": (lambda: conjugate_gradients(OPERATOR, V[:, 0]), "`conjugate_gradients`: b must have shape (151, k)"),
    "tolerance": (
        lambda: conjugate_gradients(OPERATOR, V, tolerance=0.0), "`conjugate_gradients`: tolerance must be positive",
    ),
    "z": (lambda: lanczos(OPERATOR, V[:-1], 4), "`lanczos`: z must have shape (151, k)"),
    "steps": (lambda: square_root(OPERATOR, V, num_steps=1), "`lanczos`: num_steps must be at least 2; got 1"),
    "y": (lambda: large(NET, X, Y[:-1], NOISE), "`large`: y must have shape (151, k) with n=151 from x; got (150, 2)"),
    "no noise": (lambda: large(NET, X, Y, None), "`large`: scale^2 + ridge must be positive and finite; got 0.0"),
    "batch_size": (lambda: large(NET, X, Y, NOISE, batch_size=0), "`large`: batch_size must be at least 1; got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_refusals(case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)


def test_test_inputs_are_checked(post):
    for call in (post.mean, post.predict, lambda x: post.sample(jax.random.key(0), x, 1)):
        with pytest.raises(ValueError, match=r"x_test must have shape \(n, 3\)"):
            call(X_TEST[:, :2])
    with pytest.raises(ValueError, match="`sample`: num_samples must be at least 1"):
        post.sample(jax.random.key(0), X_TEST, 0)
