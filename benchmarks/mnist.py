"""Real images for the benchmarks, from a folder the caller names; nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

FILE = "mnist-t10k-first8000.npz"


class NoImagesError(RuntimeError):
    """The folder with MNIST was not named; the message says how to make it."""


def mnist_path() -> Path:
    """The first 8,000 images of MNIST's test file, as an ``.npz`` of ``images`` and ``labels``."""
    return images_path(FILE)


def images_path(file: str) -> Path:
    """An ``.npz`` of ``images`` and ``labels`` in the folder that GRADGUARD_DATA names."""
    folder = os.environ.get("GRADGUARD_DATA")
    path = Path(folder or ".") / file
    if folder is None or not path.is_file():
        raise NoImagesError(
            f"needs {file} in the folder named by GRADGUARD_DATA: images uint8 N,28,28 or "
            "N,32,32,3 and labels N (the first 8,000 of MNIST's test file, 5,000 of CIFAR-10's "
            "first training file)"
        )
    return path
