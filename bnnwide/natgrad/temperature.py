"""The temperature at which minibatch noise holds natural gradient descent."""

from bnnwide.checks import check_positive


def temperature(
    learning_rate: float | int | None = None,
    batch_size: float | int | None = None,
    num_data: float | int | None = None,
    *,
    temperature: float | int | None = None,
) -> float:
    """Solve T = eps N / (2 B) for whichever of learning rate, batch size and temperature is left out.

    Minibatch natural gradient descent w' = w - eps F^-1 g, with g the gradient of the cost C summed over N data and
    estimated from B of them, drawn with replacement, has noise of covariance eps^2 (N/B) F^-1 once predictions
    match the law of the labels. Langevin dynamics at temperature T in time steps of eps has 2 T eps F^-1. Where C is
    quadratic with curvature F, the stationary covariance of the discrete steps is exactly T / (1 - eps/2) F^-1.

    Source: Smith, Duckworth, Rezchikov, Le & Sohl-Dickstein 2018 (arXiv 1806.09597), whose F is the average over data
    and whose learning rate is the same number: with a summed F and a summed C the two factors N cancel.

    Args:
      learning_rate: eps; without unit, small against 1.
      batch_size: B.
      num_data: N.
      temperature: T; 1 for the posterior.

    Returns:
      The one that was left out: T of (eps, B, N), say. A batch size is a real number, to be rounded up (which lowers
      the temperature).

    Raises:
      ValueError: if not exactly one of the three is left out, `num_data` is, or a number is not positive.
    """
    given = {"learning_rate": learning_rate, "batch_size": batch_size, "temperature": temperature}
    missing = [name for name, value in given.items() if value is None]
    if num_data is None or len(missing) != 1:
        raise ValueError(
            "`temperature`: num_data and exactly two of learning_rate, batch_size and temperature must be given; got "
            f"{', '.join(f'{name}={value}' for name, value in (given | {'num_data': num_data}).items())}"
        )
    for name, value in (given | {"num_data": num_data}).items():
        if value is not None:
            check_positive("temperature", name, value)
    if learning_rate is None:
        return 2 * temperature * batch_size / num_data  # type: ignore[operator]
    return learning_rate * num_data / (2 * (batch_size if temperature is None else temperature))  # type: ignore[operator]
