"""Labelled images, and their division into test, client and auxiliary parts."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradguard.evaluation.errors import UnusableInputError, one_line

# A class must appear in the test, auxiliary, calibration and scored parts.
MIN_PER_CLASS = 8


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Args:
        name: What the report calls it.
        images: Float32 of shape ``(images, channels, height, width)``, in [0, 1] for images
            that came as bytes.
        labels: Int64 of shape ``(images,)``, values ``0 .. num_classes - 1``.
        num_classes: Classes of the task; every one of them has images.

    Raises:
        UnusableInputError: The parts do not fit together.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        _check_sizes(self.name, self.images, self.labels)
        _check_labels(self.name, self.labels, self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: channels, height, width."""
        return tuple(self.images.shape[1:])

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and labels at ``indices``."""
        chosen = torch.from_numpy(np.ascontiguousarray(indices))
        return self.images[chosen], self.labels[chosen]


def _check_sizes(name: str, images: Tensor, labels: Tensor) -> None:
    if images.ndim < 2 or labels.ndim != 1:
        raise UnusableInputError(
            f"{name}: expected images (N, channels, height, width) and labels (N,), got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if len(images) != len(labels):
        raise UnusableInputError(
            f"{name}: {len(images)} images but {len(labels)} labels; give one label per image"
        )
    if len(labels) == 0 or images.numel() == 0:
        raise UnusableInputError(f"{name}: there are no images in it")
    if not torch.isfinite(images).all():
        raise UnusableInputError(f"{name}: images hold NaN or infinity; remove those images")


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise UnusableInputError(
            f"{name}: label {wrong} is outside 0..{num_classes - 1}; number the classes from 0"
        )
    if num_classes * MIN_PER_CLASS > len(labels):
        # Before counting: one stray label of a billion would ask for a billion counters.
        raise UnusableInputError(
            f"{name}: {len(labels)} images are too few for classes 0..{num_classes - 1}, of at "
            f"least {MIN_PER_CLASS} images each; number the classes from 0 without gaps"
        )
    counts = torch.bincount(labels, minlength=num_classes)
    scarce = int(counts.argmin())
    # A class without images would make a batch generator draw from nothing.
    if num_classes < 2 or counts[scarce] < MIN_PER_CLASS:
        raise UnusableInputError(
            f"{name}: expected at least 2 classes, numbered from 0 without gaps, of at least "
            f"{MIN_PER_CLASS} images each; class {scarce} of {num_classes} has {counts[scarce]}"
        )


def load_digits() -> Data:
    """The 1,797 handwritten digits, 8 x 8 pixels, that scikit-learn carries: no download.

    >>> data = load_digits()
    >>> len(data), data.input_shape, data.num_classes
    (1797, (1, 8, 8), 10)
    """
    # Imported here: scikit-learn takes a second to load, and other data does not need it.
    from sklearn.datasets import load_digits as embedded

    bunch = embedded()
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32).unsqueeze(1)
    return Data("digits", images, torch.tensor(bunch.target, dtype=torch.int64), 10)


def load_npz(path: Path, *, classes: int | None = None) -> Data:
    """Images and labels from an ``.npz`` file.

    Args:
        path: A file with ``images``, uint8 of shape ``(N, H, W)`` or ``(N, H, W, C)``, and
            ``labels``, integers of shape ``(N,)``. Pickled content is never loaded.
        classes: Number of classes; the highest label plus one when not given.

    Raises:
        UnusableInputError: The file is missing, is no such file, or its parts do not fit.
    """
    arrays = _read_npz(path)
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UnusableInputError(
            f"{path}: expected images as uint8 (N, H, W) or (N, H, W, C), got "
            f"{images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UnusableInputError(
            f"{path}: expected labels as integers (N,), got {labels.dtype} {labels.shape}"
        )
    if images.ndim == 3:
        images = images[..., None]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255).contiguous()
    targets = torch.from_numpy(labels.astype(np.int64))
    highest = int(targets.max()) if len(targets) else 0
    # The stem, not the path: a report is passed on, and paths tell more than they should.
    return Data(path.stem, pixels, targets, classes if classes is not None else highest + 1)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise FileNotFoundError
        if not zipfile.is_zipfile(path):
            # numpy would take it for a pickle, and advise to load it unsafely.
            raise UnusableInputError(
                f"{path}: not a readable .npz: it is no archive; write it with "
                "numpy.savez(path, images=..., labels=...)"
            )
        # Opened here: numpy leaves the file open where the content is no archive. For .npy
        # content it returns a bare array, which has no __enter__.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in ("images", "labels") if key not in archive]
            if missing:
                raise UnusableInputError(
                    f"{path}: expected arrays 'images' and 'labels', got {sorted(archive)}; "
                    f"add {' and '.join(map(repr, missing))}"
                )
            # A member that is no array comes as bytes; asarray gives it a type to complain of.
            return {key: np.asarray(archive[key]) for key in ("images", "labels")}
    except UnusableInputError:
        raise
    except FileNotFoundError as error:
        raise UnusableInputError(
            f"{path}: no such file; give an .npz with images and labels"
        ) from error
    except Exception as error:
        # Each way to damage an archive has its own exception: zlib's, lzma's, RuntimeError where
        # it is encrypted, MemoryError where a header claims more than there can be.
        why = "pickled objects are not read" if "pickle" in str(error) else one_line(error)
        raise UnusableInputError(f"{path}: not a readable .npz: {why}") from error


def from_dataset(dataset: Dataset[Any], *, name: str = "dataset", classes: int) -> Data:
    """Read a torch ``Dataset`` of ``(image tensor, integer label)`` pairs into memory."""
    size = len(dataset)  # type: ignore[arg-type]  # map-style datasets have a length
    pairs = [dataset[i] for i in range(size)]
    if not pairs:
        raise UnusableInputError(f"{name}: there are no images in it")
    images = torch.stack([torch.as_tensor(image, dtype=torch.float32) for image, _ in pairs])
    labels = torch.tensor([int(label) for _, label in pairs], dtype=torch.int64)
    return Data(name, images, labels, classes)
