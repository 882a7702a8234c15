"""Who holds which images: disjoint parts, every class in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError

# Of the clients' images: what the attacked model was trained on, and what is attacked.
HISTORY, CALIBRATION, SCORED = 0.6, 0.15, 0.25


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into a data set, one int64 array per part; no image is in two of them.

    Args:
        test: Measures accuracy; nobody trains or attacks with it.
        history: Clients' images that the attacked ``"trained"`` model has been trained on.
        calibration: Clients' images on whose batches the worst attack is chosen.
        scored: Clients' images on whose batches it is scored.
        auxiliary: The attacker's own images.

    Victims' images are not in ``history``. A model has next to nothing left to learn from images
    that it has memorised, so that their gradients are small and a little noise hides them; what
    a client has not been asked about yet leaks more, and must not be passed over.
    """

    test: np.ndarray
    history: np.ndarray
    calibration: np.ndarray
    scored: np.ndarray
    auxiliary: np.ndarray

    @property
    def client(self) -> np.ndarray:
        """All that clients hold; training with a defence uses all of it."""
        return np.concatenate([self.history, self.calibration, self.scored])


def split(data: Data, *, test_fraction: float, client_fraction: float, seed: int) -> Split:
    """Divide ``data`` class by class, so that every part holds every class.

    Guarantees:

    - the parts are disjoint and together are all of the data;
    - every class has at least one image in every part;
    - the same seed gives the same parts.

    Args:
        test_fraction: Share of the images held out for accuracy, strictly between 0 and 1.
        client_fraction: Share of the rest that the clients hold, strictly between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    labels = data.labels.numpy()
    client = (1 - test_fraction) * client_fraction
    auxiliary = (1 - test_fraction) * (1 - client_fraction)
    of_client = [client * share for share in (HISTORY, CALIBRATION, SCORED)]
    shares = np.array([test_fraction, *of_client, auxiliary])
    pieces = [
        _cut(rng.permutation(np.flatnonzero(labels == label)), shares)
        for label in range(data.num_classes)
    ]
    parts = [rng.permutation(np.concatenate(part)) for part in zip(*pieces, strict=True)]
    return Split(*parts)


def _cut(indices: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    # Rounding may leave a small class out of a part: every part is owed one image, and the part
    # that has most pays for it. MIN_PER_CLASS makes room for that.
    sizes = np.maximum(np.round(len(indices) * shares).astype(int), 1)
    while sizes.sum() != len(indices):
        sizes[np.argmax(sizes)] += np.sign(len(indices) - sizes.sum())
    return np.split(indices, np.cumsum(sizes)[:-1])


def keep_per_class(part: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` indices of each class of ``part``, in its order.

    Guarantees:

    - a smaller number gives some of what a larger one gives.

    Args:
        part: Indices into ``labels``.
        labels: Labels of the whole data set.

    Raises:
        UnusableInputError: No class has that many, so that a report would say more than there is.

    >>> keep_per_class(np.array([4, 2, 0, 3]), np.array([0, 1, 0, 1, 0]), 1)
    array([4, 3])
    """
    found = labels[part]
    largest = int(np.bincount(found).max())
    if most > largest:
        raise UnusableInputError(
            f"attack.auxiliary_per_class is {most}, but the attacker's part of the data holds at "
            f"most {largest} images of a class; lower it, leave it out or give more data"
        )
    kept = [np.flatnonzero(found == label)[:most] for label in np.unique(found)]
    return part[np.sort(np.concatenate(kept))]


def check_room(parts: Split, *, batch_sizes: tuple[int, ...], training: int) -> None:
    """Raise where a batch would be larger than the images it is drawn from."""
    smallest = min(len(parts.calibration), len(parts.scored), len(parts.auxiliary))
    if max(batch_sizes) > smallest:
        raise UnusableInputError(
            f"a batch of {max(batch_sizes)} is larger than the data it is drawn from: the "
            f"smallest part holds {smallest} images; lower attack.batch_sizes or give more data"
        )
    if training > len(parts.history):
        raise UnusableInputError(
            f"a training batch of {training} is larger than the clients' {len(parts.history)} "
            "images; lower training.batch_size or give more data"
        )
