"""What every certificate is given, checked: a bound from a slip in its inputs would be a lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Prior = npt.NDArray[np.float64]


def joint_mu(noise_multiplier: float, releases: int) -> float:
    """``mu`` of a record's part in ``releases`` sums with Gaussian noise: sqrt(releases) / z.

    >>> joint_mu(2.0, 4), joint_mu(0.0, 1), joint_mu(math.inf, 1)
    (1.0, inf, 0.0)
    """
    if not _is_number(noise_multiplier) or not noise_multiplier >= 0:
        raise ValueError(
            "noise_multiplier must be a number of at least 0 (noise over clipping norm), "
            f"got {noise_multiplier!r}"
        )
    check_whole("releases", releases)
    return math.inf if noise_multiplier == 0 else math.sqrt(releases) / noise_multiplier


def check_whole(name: str, value: object) -> None:
    """Raise unless ``value`` counts something that is there at least once."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_prior(prior: float) -> None:
    """Raise unless ``prior`` can be how often a guess without looking is right."""
    if not _is_number(prior) or not 0 < prior <= 1:
        raise ValueError(
            "prior must be the probability that the best guess without looking is right, in "
            f"(0, 1], such as 0.1 for ten equally likely classes; got {prior!r}"
        )


def check_rate(sample_rate: float) -> None:
    """Raise unless ``sample_rate`` is a probability above 0."""
    if not _is_number(sample_rate) or not 0 < sample_rate <= 1:
        raise ValueError(
            "sample_rate must be the probability with which a record takes part in a release, "
            f"in (0, 1]; got {sample_rate!r}"
        )


def label_probabilities(label_prior: npt.ArrayLike) -> Prior:
    """Class probabilities as an array; raises unless they are a distribution."""
    prior = np.asarray(label_prior, dtype=np.float64)
    if prior.ndim != 1 or not (prior >= 0).all() or not abs(prior.sum() - 1) < 1e-6:
        raise ValueError(
            f"label_prior must be one probability per class, summing to 1, got {label_prior!r}"
        )
    return prior


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)
