"""Who holds which images: disjoint parts, every class in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into a data set, one int64 array per part; no image is in two of the first three.

    Args:
        test: Measures accuracy; nobody trains or attacks with it.
        client: Trains the model, and is what the victims' batches are drawn from.
        auxiliary: The attacker's own images.
        calibration: The half of ``client`` on whose batches the worst attack is chosen.
        scored: The other half, on whose batches it is scored.
    """

    test: np.ndarray
    client: np.ndarray
    auxiliary: np.ndarray
    calibration: np.ndarray
    scored: np.ndarray


def split(data: Data, *, test_fraction: float, client_fraction: float, seed: int) -> Split:
    """Divide ``data`` class by class, so that every part holds every class.

    Guarantees:

    - test, client and auxiliary are disjoint and together are all of the data;
    - calibration and scored are disjoint and together are the client part;
    - every class has at least one image in every part;
    - the same seed gives the same parts.

    Args:
        test_fraction: Share of the images held out for accuracy, strictly between 0 and 1.
        client_fraction: Share of the rest that the clients hold, strictly between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    labels = data.labels.numpy()
    parts: dict[str, list[np.ndarray]] = {
        "test": [],
        "calibration": [],
        "scored": [],
        "auxiliary": [],
    }
    for label in range(data.num_classes):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        for name, piece in zip(parts, _cut(shuffled, test_fraction, client_fraction), strict=True):
            parts[name].append(piece)
    joined = {name: rng.permutation(np.concatenate(pieces)) for name, pieces in parts.items()}
    client = np.concatenate([joined["calibration"], joined["scored"]])
    return Split(joined["test"], client, joined["auxiliary"], *(joined[k] for k in _HALVES))


_HALVES = ("calibration", "scored")


def _cut(indices: np.ndarray, test: float, client: float) -> list[np.ndarray]:
    # Rounding may leave a small class out of a part: every part is owed one image, two of them
    # for the client, whose share is halved. MIN_PER_CLASS makes room for that.
    size = len(indices)
    tests = min(max(round(size * test), 1), size - 3)
    clients = min(max(round((size - tests) * client), 2), size - tests - 1)
    half = clients // 2
    return np.split(indices, [tests, tests + half, tests + clients])


def check_room(parts: Split, *, batch_sizes: tuple[int, ...], training: int) -> None:
    """Raise where a batch would be larger than the images it is drawn from."""
    smallest = min(len(parts.calibration), len(parts.scored), len(parts.auxiliary))
    if max(batch_sizes) > smallest:
        raise UnusableInputError(
            f"a batch of {max(batch_sizes)} is larger than the data it is drawn from: the "
            f"smallest part holds {smallest} images; lower attack.batch_sizes or give more data"
        )
    if training > len(parts.client):
        raise UnusableInputError(
            f"a training batch of {training} is larger than the clients' {len(parts.client)} "
            "images; lower training.batch_size or give more data"
        )
