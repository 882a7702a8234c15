"""The bank of readers that the learned attack chooses from.

No reader is best everywhere. Measured on MNIST: raw coordinates win on untrained models, signs and
class summaries on trained ones, the surviving mask where the head is withheld, the shared network
nearly everywhere else. To add one, add a line to :data:`MAPS`, or a learner to :func:`fit_bank`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from gradguard.attacks.learning.class_summary import signed_root
from gradguard.attacks.learning.kernel_ridge import Kernel, KernelRidge, fit_kernel_ridge
from gradguard.attacks.learning.low_bits import fit_low_bits
from gradguard.attacks.learning.readings import Readings
from gradguard.attacks.learning.shared_network import fit_shared_network
from gradguard.attacks.learning.template_scores import fit_template_scores

Map = Callable[[Readings], np.ndarray]


def _unit_columns(readings: Readings) -> np.ndarray:
    """Every column of the head scaled to unit length over classes: who owns it, not how large."""
    norms = np.linalg.norm(readings.weight, axis=1, keepdims=True)
    unit: np.ndarray = (readings.weight / (norms + 1e-20)).reshape(len(readings), -1)
    return unit


def _ranks_of_body(readings: Readings) -> np.ndarray:
    """The rank of every magnitude in its message, in [0, 1]: the same whatever the scale."""
    # torch sorts rows in parallel, numpy does not: a third of the time on two cores.
    order = torch.from_numpy(np.abs(readings.body)).argsort(dim=1, stable=True).numpy()
    ranks = np.empty(order.shape, dtype=np.float32)
    steps = np.linspace(0, 1, order.shape[1], dtype=np.float32)
    np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
    return ranks


MAPS: dict[str, tuple[Kernel, Map]] = {
    "raw head": ("arc-cosine", lambda r: r.head),
    "head signs": ("arc-cosine", lambda r: np.sign(r.head)),
    "head roots": ("arc-cosine", lambda r: signed_root(r.head)),
    "column-normalised head": ("arc-cosine", _unit_columns),
    "class summaries": ("linear", lambda r: r.summary.reshape(len(r), -1)),
    "raw body": ("arc-cosine", lambda r: r.body),
    "body signs": ("arc-cosine", lambda r: np.sign(r.body)),
    "body, layer by layer": ("arc-cosine", lambda r: r.unit_layers),
    "body roots": ("arc-cosine", lambda r: signed_root(r.body)),
    # What is left of the order of magnitudes when signs and sizes are scrambled.
    "body magnitudes": ("arc-cosine", lambda r: np.sqrt(np.sqrt(np.abs(r.body)))),
    "body ranks": ("arc-cosine", _ranks_of_body),
    "surviving mask": (
        "arc-cosine",
        lambda r: (np.concatenate([r.head, r.body], axis=1) != 0).astype(np.float32),
    ),
    # All other maps but one see coordinates; a size alone they would miss.
    "tensor norms": ("arc-cosine", lambda r: np.log(r.norms + 1e-12)),
}
"""Name to kernel and feature map, each fitted by kernel ridge."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fitted reader: messages in, label shares ``(messages, classes)`` out.

    ``judged`` is what it answers for the held-out messages it was fitted with.
    """

    name: str
    predict: Callable[[Readings], np.ndarray]
    judged: np.ndarray


def fit_bank(
    readings: Readings,
    shares: np.ndarray,
    held_out: Readings,
    score: Callable[[np.ndarray], float],
    seed: int,
) -> Iterator[Candidate]:
    """Fit every reader on rehearsed messages, one at a time.

    Args:
        readings: Messages to fit on.
        shares: Their true label shares, ``(messages, classes)``.
        held_out: Messages that share no image with them; they set the ridge's strength.
        score: Judges predicted shares for ``held_out``; higher is better.
        seed: Of the networks' initial weights.
    """
    for name, (kernel, features) in MAPS.items():
        values = features(readings)
        if values.shape[1] and values.any():
            ridge, answers = fit_kernel_ridge(values, shares, features(held_out), score, kernel)
            yield Candidate(name, partial(_predict_ridge, ridge, features), answers)
    for name, bits, answers in fit_low_bits(readings, shares, held_out, score):
        yield Candidate(name, bits.predict, answers)
    alone = fit_shared_network(readings.summary, shares, seed)
    yield Candidate(
        "network on class summaries",
        lambda r: alone.predict(r.summary),
        alone.predict(held_out.summary),
    )
    templates, honest = fit_template_scores(readings, shares)
    joint = fit_shared_network(np.concatenate([readings.summary, honest], axis=2), shares, seed)

    def with_templates(seen: Readings) -> np.ndarray:
        return joint.predict(np.concatenate([seen.summary, templates.score(seen)], axis=2))

    name = "network on class summaries and template scores"
    yield Candidate(name, with_templates, with_templates(held_out))


def _predict_ridge(ridge: KernelRidge, features: Map, readings: Readings) -> np.ndarray:
    return ridge.predict(features(readings))
