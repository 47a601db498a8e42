"""Fisher operators against the matrix made from Jacobians, and K-FAC where it is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bnnwide as bw
from bnnwide.natgrad.curvature import Layout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
DAMPING = 0.7
LIKELIHOODS = {
    "gaussian": bw.Gaussian(np.array([0.5, 0.8, 1.0])),
    "categorical": bw.Categorical(),
    "poisson": bw.Poisson(),
}


def network(outputs=3, width=4):
    return bw.Dense(width, w_scale=1.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(outputs, b_scale=0.4)


def textbook(net, params, x, likelihood):
    """sum_i J^T H J with H as the Hessian of -log p averaged over the law's own support or moments."""
    layout = Layout.of(params)
    f = lambda flat: net(layout.unravel(flat), x)  # noqa: E731
    jacobian = jax.jit(jax.jacobian(f))(layout.ravel(params))
    h = outputs_information(likelihood, net(params, x))
    return jnp.einsum("nap,nab,nbq->pq", jacobian, h, jacobian)


@jax.jit
def operations(fisher, v):
    """Everything an operator does, as arrays: compiled once per form."""
    flat = lambda act: lambda u: fisher.layout.ravel(act(fisher.layout.unravel(u)))  # noqa: E731
    eye = jnp.eye(fisher.layout.size)
    return {
        "matrix": fisher.dense(),
        "matvec": flat(fisher.matvec)(v),
        "solve": flat(fisher.solve)(v),
        "root": jax.vmap(flat(fisher.sqrt_solve), out_axes=1)(eye),
        "logdet": fisher.logdet(),
        "dimension": fisher.effective_dimension(),
        "diag": fisher.layout.ravel(fisher.diag()),
    }


def check_operations(fisher, g, atol):
    v = jnp.asarray(RNG.normal(size=len(g)))
    got = operations(fisher, v)
    np.testing.assert_allclose(got["matrix"], g, atol=atol)
    np.testing.assert_allclose(got["matvec"], g @ v, atol=atol)
    np.testing.assert_allclose(got["solve"], np.linalg.solve(g, v), atol=atol)
    np.testing.assert_allclose(got["root"] @ got["root"].T, np.linalg.inv(g), atol=atol)
    np.testing.assert_allclose(got["logdet"], np.linalg.slogdet(g)[1], rtol=1e-10)
    np.testing.assert_allclose(got["diag"], np.diagonal(g), atol=atol)
    np.testing.assert_allclose(got["dimension"], np.trace(np.linalg.solve(g, g - DAMPING * np.eye(len(g)))), rtol=1e-9)


def outputs_information(likelihood, f):
    if isinstance(likelihood, bw.Gaussian):
        return jnp.broadcast_to(jnp.diag(1 / jnp.asarray(likelihood.scale) ** 2), (len(f), 3, 3))
    if isinstance(likelihood, bw.Poisson):
        return jax.vmap(jnp.diag)(jnp.exp(f))
    return jax.vmap(jax.hessian(jax.nn.logsumexp))(f)


@pytest.fixture(scope="module")
def params():
    return network().init(jax.random.key(0), (3,))


@pytest.mark.parametrize(
    ("form", "name"), [("dense", "gaussian"), ("dense", "poisson"), ("dense", "categorical"), ("dual", "categorical")]
)
def test_exact_forms_are_the_textbook_matrix(params, form, name):
    net, likelihood = network(), LIKELIHOODS[name]
    g = textbook(net, params, X, likelihood) + DAMPING * np.eye(31)
    fisher = bw.natgrad.fisher(net, params, X, likelihood, form=form, damping=DAMPING)
    check_operations(fisher, np.asarray(g), 1e-9)


def test_any_function_will_do():
    f = lambda w, x: jnp.stack([jnp.sin(x @ w["a"]), x @ w["b"]], axis=1)  # noqa: E731
    w = {"a": jnp.asarray(RNG.normal(size=3)), "b": jnp.asarray(RNG.normal(size=3))}
    slopes = np.cos(X @ w["a"])[:, None] * X
    expected = np.block([[slopes.T @ slopes, np.zeros((3, 3))], [np.zeros((3, 3)), X.T @ X]]) / 0.25
    for form in ("dense", "dual", "diag"):
        fisher = bw.natgrad.fisher(f, w, X, bw.Gaussian(0.5), form=form, damping=DAMPING)
        wanted = expected if form != "diag" else np.diag(np.diagonal(expected))
        np.testing.assert_allclose(fisher.dense(), wanted + DAMPING * np.eye(6), rtol=1e-9, atol=1e-12)
    with pytest.raises(
        ValueError, match="`fisher`: form 'kfac' must be given an architecture whose weights all sit in"
    ):
        bw.natgrad.fisher(f, w, X, bw.Gaussian(0.5), form="kfac", damping=1.0)


def test_diagonal_sums_over_more_inputs_than_it_holds(params):
    x = RNG.normal(size=(150, 3))
    exact = bw.natgrad.fisher(network(), params, x, bw.Categorical(), form="dense", damping=DAMPING)
    diagonal = bw.natgrad.fisher(network(), params, x, bw.Categorical(), form="diag", damping=DAMPING)
    np.testing.assert_allclose(diagonal.layout.ravel(diagonal.diag()), jnp.diagonal(exact.matrix), rtol=1e-9)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_kronecker_operations_belong_to_one_matrix(params, form):
    fisher = bw.natgrad.fisher(network(), params, X, bw.Categorical(), form=form, damping=DAMPING)
    g = np.asarray(fisher.dense())
    np.testing.assert_allclose(g, g.T, atol=1e-12)
    check_operations(fisher, g, 1e-10)


def off_block(layout, matrix):
    """Set what lies between weights of different layers to zero."""
    sizes = np.array([int(np.prod(shape)) for shape in layout.shapes])
    layer = np.repeat(np.arange(len(sizes)) // 2, sizes)  # biases and weights of one layer are neighbours
    return np.where(layer[:, None] == layer[None, :], matrix, 0.0)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_blocks_are_exact_for_one_datum_and_one_direction(params, form):
    """With one input and a score of rank one the block is (psi psi^T) x (g g^T) itself."""
    one = bw.natgrad.fisher(network(), params, X[:1], bw.Categorical(), form=form, damping=DAMPING)
    exact = bw.natgrad.fisher(network(), params, X[:1], bw.Categorical(), form="dense", damping=DAMPING)
    if form == "kfac":  # psi psi^T x sum_r g_r g_r^T holds for any number of directions
        np.testing.assert_allclose(one.dense(), off_block(one.layout, exact.matrix), atol=1e-10)
    np.testing.assert_allclose(one.logdet(), jnp.linalg.slogdet(off_block(one.layout, exact.matrix))[1], rtol=1e-9)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_blocks_are_exact_for_linear_networks_under_gaussian_noise(form):
    """Derivatives do not depend on the input then, so that features and derivatives are independent."""
    net = bw.Dense(4, w_scale=1.5, b_scale=0.3) >> bw.Dense(3, b_scale=0.4)
    params = net.init(jax.random.key(1), (3,))
    noise = LIKELIHOODS["gaussian"]
    kfac = bw.natgrad.fisher(net, params, X, noise, form=form, damping=DAMPING)
    exact = textbook(net, params, X, noise) + DAMPING * np.eye(kfac.layout.size)
    np.testing.assert_allclose(kfac.dense(), off_block(kfac.layout, exact), atol=1e-9)


def kl(q, p):
    """KL(N(0, q^-1) || N(0, p^-1))."""
    return 0.5 * (jnp.trace(jnp.linalg.solve(q, p)) - len(p) + jnp.linalg.slogdet(q)[1] - jnp.linalg.slogdet(p)[1])


def test_eigenvalue_correction_brings_kfac_closer(params):
    x = RNG.normal(size=(40, 3))
    exact = bw.natgrad.fisher(network(), params, x, bw.Categorical(), form="dense", damping=DAMPING).matrix
    blocks = off_block(Layout.of(params), exact)
    by = {form: bw.natgrad.fisher(network(), params, x, bw.Categorical(), form=form, damping=DAMPING).dense()
          for form in ("diag", "kfac", "ekfac")}  # fmt: skip
    norms = {form: np.linalg.norm(g - blocks) for form, g in by.items()}
    assert norms["ekfac"] < norms["kfac"] < norms["diag"]  # George et al. 2018 prove the first
    distance = {form: float(kl(g, exact)) for form, g in by.items()}
    assert distance["ekfac"] < distance["kfac"] < distance["diag"]
    assert distance["kfac"] < 0.2 * 31  # nats; 0.2 per weight


def test_empirical_fisher_is_the_sum_of_outer_products_of_gradients(params):
    y, net = np.array([0, 2, 1, 1, 0, 2]), network()
    layout = Layout.of(params)

    def log_prob(flat, x, y):
        return bw.Categorical().log_prob(net(layout.unravel(flat), x[None]), y[None])[0]

    each = jax.jit(jax.vmap(jax.grad(log_prob), (None, 0, 0)))(layout.ravel(params), jnp.asarray(X), jnp.asarray(y))
    for form in ("dense", "dual"):
        fisher = bw.natgrad.fisher(net, params, X, bw.Categorical(), form=form, damping=DAMPING, y=y)
        np.testing.assert_allclose(fisher.dense(), each.T @ each + DAMPING * np.eye(31), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [(bw.StudentT(5.0, 0.4), 2), (bw.HeteroscedasticGaussian(0.5), 2), (bw.Categorical(), 3)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_information_of_outputs_is_the_covariance_of_scores(likelihood, outputs):
    """The closed forms against the Monte-Carlo form that a likelihood of one's own inherits."""
    f = jnp.asarray(RNG.normal(size=(4, outputs)))
    closed = likelihood.fisher_factor(f)
    sampled = bw.Likelihood.fisher_factor(likelihood, f)
    gram = lambda s: s @ jnp.swapaxes(s, 1, 2)  # noqa: E731
    scale = jnp.sqrt(jnp.einsum("naa,nbb->nab", gram(closed), gram(closed)))
    # 1000 draws; the fourth moment of a score is at most about 16 times its variance squared here.
    assert (jnp.abs(gram(sampled) - gram(closed)) < 5 * (16 / 1000) ** 0.5 * scale).all()


def test_singular_matrices_are_refused_and_a_damping_is_named(params):
    for form in ("dense", "diag", "kfac", "ekfac"):
        x = np.zeros_like(X) if form == "diag" else X[:2]
        with pytest.raises(
            ValueError, match="must be regular; .* use damping=1.0, the precision of the prior, or at the"
        ):
            bw.natgrad.fisher(network(), params, x, bw.Categorical(), form=form)
    rank = bw.natgrad.fisher(network(), params, X[:2], bw.Categorical(), damping=1e-6).effective_dimension()
    assert rank == pytest.approx(4, abs=1e-3)  # 2 inputs, 3 classes of which one is fixed by the others, 31 weights
    with pytest.raises(ValueError, match="the dual form of the Fisher matrix needs a positive damping"):
        bw.natgrad.fisher(network(), params, X[:2], bw.Categorical())
    with pytest.raises(ValueError, match="damping must be one number of at least 0"):
        bw.natgrad.fisher(network(), params, X, bw.Categorical(), damping=-1.0)
    fisher = bw.natgrad.fisher(network(), params, X, bw.Categorical(), form="diag", damping=1.0)
    with pytest.raises(ValueError, match="`solve`: the vector must be a pytree shaped as the weights"):
        fisher.solve(params[:1])
    with pytest.raises(ValueError, match="likelihood must have numbers for its parameters"):
        bw.natgrad.fisher(network(), params, X, bw.Gaussian(dist.LogNormal(0.0, 1.0)))
    with pytest.raises(ValueError, match="`fisher`: x must be finite"):
        bw.natgrad.fisher(network(), params, np.where(X > 1, np.nan, X), bw.Categorical(), damping=1.0)


def test_operators_pass_through_jit(params):
    fisher = bw.natgrad.fisher(network(), params, X, bw.Categorical(), form="kfac", damping=1.0)
    solved = jax.jit(lambda fisher, v: fisher.solve(v))(fisher, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), solved, fisher.solve(params))
