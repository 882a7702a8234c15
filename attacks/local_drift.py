"""How a client's logits drift while it trains, simulated from label shares alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradguard.attacks.rounding import Floats


def step_weights(steps: int, momentum: float) -> Floats:
    """How often each step's gradient is in the change of the model, shape ``(steps,)``.

    SGD with momentum repeats the gradient of step ``t`` in all later steps, ``gamma`` times less
    in each: ``(1 - gamma^(steps - t)) / (1 - gamma)``.

    >>> step_weights(3, 0.5).tolist()
    [1.75, 1.5, 1.0]
    """
    left = np.arange(steps, 0, -1, dtype=np.float64)
    weights: Floats = (1 - momentum**left) / (1 - momentum)
    return weights


def drift_gain(weight: Floats, bias: Floats) -> float:
    """By how much more than the bias the logits of a mean example move: ``1 + sum_d e_d^2``.

    ``e`` is the mean feature vector, read off the head's gradient ``dW_c = db_c e``. It is fitted
    by least squares over the classes: a mean of the ratios ``dW_cd / db_c`` is at the mercy of the
    class with ``db_c`` nearest to zero.

    Args:
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``, at the same scale.
    """
    size = float(bias @ bias)
    if size == 0:
        return 1.0
    features = bias @ weight / size
    return 1.0 + float(features @ features)


def simulate_drift(
    confidence: Callable[[Floats], Floats],
    shares: Floats,
    speed: float,
    steps: int,
    momentum: float,
) -> tuple[Floats, Floats]:
    """Run local steps on confidences by class.

    Args:
        confidence: From a shift of the logits to the mean confidences ``(classes, classes)``.
        shares: Label shares of the client, shape ``(classes,)``.
        speed: How far a unit of bias gradient moves the logits in a step.

    Returns:
        Confidences averaged as the steps' gradients are, and the shift of the logits at the end.
    """
    weights = step_weights(steps, momentum)
    drift, velocity = np.zeros_like(shares), np.zeros_like(shares)
    average = np.zeros((len(shares), len(shares)))
    for weight in weights:
        now = confidence(drift)
        average += weight * now
        velocity = momentum * velocity + now.T @ shares - shares
        drift = drift - speed * velocity
    return average / weights.sum(), drift


def centred(probabilities: Floats) -> Floats:
    """Logits up to a common shift, from softmax outputs: their mean over classes is zero."""
    logits = np.log(np.maximum(probabilities, 1e-300))
    centred: Floats = logits - logits.mean(axis=1, keepdims=True)
    return centred
