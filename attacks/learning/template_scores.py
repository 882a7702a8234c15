"""How much of each class's average message is in a message, by regression on rehearsed ones.

A gradient is linear in the label counts (the mean of per-class gradients), so class templates can
be regressed from rehearsed messages *after* the defence, whatever it does to them, and of any map
of a message: its signs or its surviving mask have class averages too. The scores are generalised
least squares with a diagonal covariance. Unlike
:class:`~gradguard.attacks.template.TemplateRegression` nothing is assumed of the defence; the price
is noisier templates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradguard.attacks.learning.class_summary import signed_root
from gradguard.attacks.learning.readings import Readings

FOLDS = 4

CHANNELS: dict[str, Callable[[Readings], np.ndarray]] = {
    "head": lambda r: r.head,
    "head signs": lambda r: np.sign(r.head),
    "head roots": lambda r: signed_root(r.head),
    "body": lambda r: r.body,
    "body, layer by layer": lambda r: r.unit_layers,
    "body signs": lambda r: np.sign(r.body),
    "body roots": lambda r: signed_root(r.body),
    "body mask": lambda r: (r.body != 0).astype(np.float32),
}


@dataclass(frozen=True, eq=False)
class TemplateScores:
    """Filters ``(coordinates, classes)`` per fold, for every channel that has coordinates."""

    filters: dict[str, list[np.ndarray]]

    def score(self, readings: Readings) -> np.ndarray:
        """Scores of new messages, ``(messages, classes, channels)``: the folds' average."""
        scores = []
        for name, filters in self.filters.items():
            values = CHANNELS[name](readings)
            scores.append(np.mean([values @ one for one in filters], axis=0))
        return np.stack(scores, axis=2).astype(np.float32)


def fit_template_scores(
    readings: Readings, shares: np.ndarray
) -> tuple[TemplateScores, np.ndarray]:
    """Fit, and score the very messages it was fitted on without flattering them.

    Returns:
        The fitted scores, and those of ``readings`` by the folds that did not see the message:
        a network trained on in-sample scores would trust them far too much.
    """
    fold = np.arange(len(readings)) % FOLDS
    filters: dict[str, list[np.ndarray]] = {}
    honest = []
    for name, channel in CHANNELS.items():
        values = channel(readings)
        if not values.shape[1]:
            continue
        filters[name] = [_filter(values[fold != k], shares[fold != k]) for k in range(FOLDS)]
        scores = np.zeros(shares.shape, dtype=np.float32)
        for k, one in enumerate(filters[name]):
            scores[fold == k] = values[fold == k] @ one
        honest.append(scores)
    return TemplateScores(filters), np.stack(honest, axis=2)


def _filter(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The least-squares map from a message to label shares, through regressed templates."""
    classes = np.eye(shares.shape[1])
    # What is as large as the messages stays in single precision; what is small is in double.
    singles = shares.astype(np.float32)
    moments = (singles.T @ values).astype(np.float64)
    # Inverses of small matrices: a solve with as many right-hand sides as coordinates is slower.
    templates = np.linalg.inv(shares.T @ shares + 1e-2 * classes) @ moments
    misfit = values - singles @ templates.astype(np.float32)
    residual = np.square(misfit, out=misfit).mean(0, dtype=np.float64)
    weighted = templates / (residual + 1e-2 * residual.mean() + 1e-20)
    fisher = weighted @ templates.T
    fisher += (1e-4 * np.trace(fisher) / len(fisher) + 1e-12) * classes
    filtered: np.ndarray = (np.linalg.inv(fisher) @ weighted).T.astype(np.float32)
    return filtered
