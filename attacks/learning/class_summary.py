"""Each class row of the head gradient in a few numbers that mean the same for every class.

A regression from raw coordinates to counts has to learn every class by itself. Numbers such as
"the share of negative columns in this row" mean the same for every class, so that what is learned
on one class serves all of them, and they do not grow with the model. On trained models they carry
more than the coordinates do: a few misclassified examples own nearly all of the magnitude, and
shares of signs and of won columns do not care.
"""

from __future__ import annotations

import numpy as np

TINY = 1e-20


def summarise(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Per-class numbers of head gradients and of their signs.

    Args:
        weight: Gradients of the head's weight, shape ``(messages, classes, features)``.
        bias: Gradients of its bias, shape ``(messages, classes)``, if it has one.

    Returns:
        float32 of shape ``(messages, classes, numbers)``. All are invariant to a positive scale
        of the message, so that clipping and rescaling do not hide anything.
    """
    if bias is None:
        bias = np.zeros(weight.shape[:2], dtype=np.float32)
    both = [_row_numbers(weight, bias), _row_numbers(np.sign(weight), np.sign(bias))]
    joined: np.ndarray = np.concatenate(both, axis=2).astype(np.float32)
    return joined


def signed_root(values: np.ndarray) -> np.ndarray:
    """The fourth root of the magnitude with the sign kept: large entries stop dominating.

    >>> signed_root(np.array([16.0, -81.0, 0.0]))
    array([ 2., -3.,  0.])
    """
    rooted: np.ndarray = np.abs(values)
    np.sqrt(np.sqrt(rooted, out=rooted), out=rooted)
    np.copysign(rooted, values, out=rooted)
    return rooted


def _row_numbers(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    magnitude = np.abs(weight)
    positive, negative = (weight > 0).mean(2), (weight < 0).mean(2)
    # Columns in which this class has the largest magnitude, and the most negative entry.
    won = ((magnitude == magnitude.max(1, keepdims=True)) & (magnitude > 0)).mean(2)
    lowest = ((weight == weight.min(1, keepdims=True)) & (weight < 0)).mean(2)
    unit = weight / (np.linalg.norm(weight, axis=1, keepdims=True) + TINY)
    row_sum, row_mass = _share(weight.sum(2)), _share(magnitude.sum(2))
    negative_mass = _share(np.clip(-weight, 0, None).sum(2))
    bias_share = _share(bias)
    return np.stack(
        [
            positive,
            negative,
            _share(negative),
            won,
            lowest,
            np.clip(unit, 0, None).mean(2),
            np.clip(-unit, 0, None).mean(2),
            row_sum,
            np.sign(row_sum),
            signed_root(row_sum),
            row_mass,
            negative_mass,
            np.log(negative_mass + 1e-6),
            bias_share,
            np.sign(bias_share),
            signed_root(bias_share),
        ],
        axis=2,
    )


def _share(values: np.ndarray) -> np.ndarray:
    """Values over classes as shares of their total magnitude; zeros stay zeros."""
    total = np.abs(values).sum(axis=1, keepdims=True)
    shares: np.ndarray = values / (total + TINY)
    return shares
