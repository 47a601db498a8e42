"""The angle between two Gaussian variables, right to the last digits where they are coincident, opposite or zero.

Every function here has its derivatives by hand. Where one is infinite (that of an angle in the correlation, at a
correlation of 1 or -1) it is taken as 0, the mean of its two sides along any path of inputs.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Chebyshev interpolants of atan(t)/t in t^2 on [0, 1], lowest power first: relative errors of 5e-18 and 2e-8, so that
# rounding alone is seen. XLA's own arctan2 is a call for each number and takes ten to fifty times as long.
_ATAN_64 = (
    1.0, -0.3333333333333286, 0.19999999999929946, -0.14285714281592693, 0.11111110982087126, -0.09090906605656898,
    0.0769227555520563, -0.06666371187721098, 0.05880342002401543, -0.052527255573225747, 0.04719723992321112,
    -0.042125723963855326, 0.03651081352721035, -0.02970071773623423, 0.021740213830758134, -0.013674139288399478,
    0.007038646202989813, -0.0028047655531701315, 0.0008033604181626027, -0.00014617088163625013,
    1.2631178430477426e-05,
)  # fmt: skip
_ATAN_32 = (
    0.9999999817886557, -0.33333036709286273, 0.19991872029109073, -0.14197797794085124, 0.10618370636953849,
    -0.07456854826004547, 0.04213762358919304, -0.01573124912218365, 0.002766283501762026,
)  # fmt: skip
# How far 1 - rho^2 may be off for equal inputs, in units of the rounding error: the two variances and the covariance
# are sums of the same numbers in different orders.
_SNAP = 32


def arctangent(x: Array, y: Array) -> Array:
    """Return the angle atan(x / y) for y >= 0, and 0 where x = y = 0."""
    size = jnp.abs(x)
    low, high = jnp.minimum(size, y), jnp.maximum(size, y)
    t = low / jnp.where(high > 0, high, 1)
    z = t * t
    coefficients = _ATAN_64 if z.dtype == jnp.float64 else _ATAN_32
    # The odd and the even powers on their own: two chains of multiply-adds are in flight at once.
    square = z * z
    angle = t * (_horner(coefficients[::2], square) + z * _horner(coefficients[1::2], square))
    return jnp.where(x < 0, -1, 1) * jnp.where(size > y, 0.5 * math.pi - angle, angle)


def _horner(coefficients: tuple[float, ...], z: Array) -> Array:
    total = jnp.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * z + coefficient
    return total


@jax.custom_jvp
def arc(x: Array, y: Array) -> Array:
    """Return atan(x / y) for y > 0."""
    return arctangent(x, y)


@arc.defjvp
def _arc_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    return arc(x, y), (y * dx - x * dy) / (x * x + y * y)


@jax.custom_jvp
def root(q: Array) -> Array:
    """Return sqrt(q), with derivative 0 at 0."""
    return jnp.sqrt(jnp.maximum(q, 0))


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    s = root(*primals)
    return s, 0.5 * inverse(s) * tangents[0]


def inverse(q: Array) -> Array:
    """Return 1 / q, and 0 where q is 0."""
    return jnp.where(q > 0, 1 / jnp.where(q > 0, q, 1), 0)


@jax.custom_jvp
def determinant(q11: Array, q12: Array, q22: Array) -> Array:
    """Return q11 q22 - q12^2, exactly 0 where it is within rounding of it."""
    return _root_and_arc(q11, q12, q22)[0] ** 2


@determinant.defjvp
def _determinant_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (q11, q12, q22), (d11, d12, d22) = primals, tangents
    return determinant(q11, q12, q22), q22 * d11 + q11 * d22 - 2 * q12 * d12


def _root_and_arc(q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
    # In units of q11, so that no product of two small variances underflows.
    unit = inverse(q11)
    s, t = q12 * unit, q22 * unit
    square = t - s * s
    r = jnp.sqrt(jnp.where(square > _SNAP * float(jnp.finfo(square.dtype).eps) * t, square, 0))
    return q11 * r, arctangent(jnp.where(t > 0, s, 0), r)


@jax.custom_jvp
def root_and_arc(q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
    """Return sqrt(q11 q22 - q12^2) and asin(rho), with rho = q12 / sqrt(q11 q22).

    A correlation within rounding of 1 or -1 counts as such: the variances of equal inputs and their covariance differ
    in the last digits, of which the root would make half as many. At a variance of 0 both are 0.
    """
    return _root_and_arc(q11, q12, q22)


@root_and_arc.defjvp
def _root_and_arc_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]):
    (q11, q12, q22), (d11, d12, d22) = primals, tangents
    r, angle = root_and_arc(q11, q12, q22)
    over = inverse(r)
    dr = over * (0.5 * (q22 * d11 + q11 * d22) - q12 * d12)
    return (r, angle), (dr, over * (d12 - 0.5 * q12 * (inverse(q11) * d11 + inverse(q22) * d22)))


@jax.custom_jvp
def rectified_moments(q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
    """Return E[u_+ v_+] = (sqrt(q11 q22 - q12^2) + q12 t) / 2 pi and P(u > 0, v > 0) = t / 2 pi, t = pi/2 + asin(rho).

    At opposite inputs both are exactly 0.
    """
    r, angle = root_and_arc(q11, q12, q22)
    turn = 0.5 * math.pi + angle
    return (r + q12 * turn) / (2 * math.pi), turn / (2 * math.pi)


@rectified_moments.defjvp
def _rectified_moments_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]):
    # The second moment is the first's derivative in q12 (Price's theorem), which stays finite where the parts' do not.
    (q11, q12, q22), (d11, d12, d22) = primals, tangents
    r, angle = root_and_arc(q11, q12, q22)
    relative = 0.5 * (inverse(q11) * d11 + inverse(q22) * d22)
    turn = 0.5 * math.pi + angle
    slopes = turn * d12 + r * relative, inverse(r) * (d12 - q12 * relative)
    return ((r + q12 * turn) / (2 * math.pi), turn / (2 * math.pi)), (
        slopes[0] / (2 * math.pi),
        slopes[1] / (2 * math.pi),
    )
