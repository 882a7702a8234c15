"""The content hash of a unit of work: everything that its result depends on, and nothing else.

Two studies that share a unit share its hash, and so its result. What is computed beside it, in how
many processes and in which order, is not in it. The sources of gradguard are: results of one
version are never taken for those of another.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gradguard
from gradguard import Defense
from gradguard.evaluation.data import Data
from gradguard.evaluation.running.bench import Bench
from gradguard.evaluation.running.units import Attacked, Trained, Undefended, Unit, Weighed

READERS = ("__pycache__", "views", "commands", "decisions", "search")
"""Folders without a part in any result."""

PACKAGES = ("torch", "numpy", "scipy", "opacus", "scikit-learn")


class Keys:
    """The hashes of a study's units.

    Guarantees:

    - adding, removing or reordering other defences changes no hash;
    - a change of data, weights, seed, settings, sources or versions changes it.

    Not guaranteed: that a model's code outside its own module is noticed, where neither its
    initial weights nor its ``repr`` change.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench, study = bench, bench.study
        self._defenses = {d.name: described(d) for d in study.defenses}
        self._common = {
            "sources": sources_digest(),
            "versions": versions(),
            "seed": study.seed,
            "data": data_digest(bench.data),
            "parts": {name: _array(part) for name, part in vars(bench.parts).items()},
            "training": asdict(study.training),
            "client": None if study.client is None else study.client.to_dict(),
        }
        self._attack = {
            "attacks": {name: repr(attack) for name, attack in bench.attacks.items()},
            "seeds": study.attacked_seeds,
            **{
                name: getattr(study.attack, name)
                for name in ("trials", "calibration", "participation", "auxiliary_shift")
            },
        }
        self._models: dict[int, str] = {}

    def of(self, unit: Unit) -> str:
        """The unit's hash: 40 hexadecimal digits."""
        facts: dict[str, Any] = {"unit": type(unit).__name__, **self._common}
        match unit:
            case Attacked(defense, cell, repeat):
                facts |= {"defense": self._defenses[defense], "cell": asdict(cell)}
                facts |= {"attack": self._attack, "model": self._model(repeat), "repeat": repeat}
            case Trained(defense, repeat):
                facts |= {"defense": self._defenses[defense]}
                facts |= {"model": self._model(repeat), "repeat": repeat}
            case Weighed(defense):
                facts |= {"defense": self._defenses[defense], "model": self._model(0)}
            case Undefended(repeat):
                facts |= {"model": self._model(repeat), "repeat": repeat}
        return digest(json.dumps(facts, sort_keys=True, default=repr).encode())

    def _model(self, repeat: int) -> str:
        if repeat not in self._models:
            self._models[repeat] = model_digest(self._bench.fresh_model(repeat))
        return self._models[repeat]


def described(defense: Defense) -> object:
    """A defence as plain data; one with a transform of the user's own by its pickled content."""
    try:
        return defense.to_dict()
    except ValueError:
        own = {"name": defense.name, "transform": repr(defense.chain), "dp": repr(defense.dp)}
        return own | {"cohort": defense.cohort, "content": _pickled(defense.chain)}


def _pickled(value: object) -> str:
    try:
        # Hashed, never loaded.
        content = pickle.dumps(value)
    except Exception as error:  # whatever the user's own __reduce__ raises
        return f"not picklable: {type(error).__name__}"
    return digest(content, *(_source(type(link)) for link in getattr(value, "links", ())))


def data_digest(data: Data) -> str:
    """Images, labels and the number of classes; not what the data are called."""
    classes = str(data.num_classes).encode()
    return digest(classes, *_bytes(data.images), *_bytes(data.labels))


def model_digest(model: nn.Module) -> str:
    """Architecture, initial weights, and the source of the model's own module."""
    parts = [repr(model).encode(), _source(type(model))]
    for name, tensor in model.state_dict().items():
        parts += [name.encode(), *_bytes(tensor)]
    return digest(*parts)


@cache
def sources_digest() -> str:
    """All of gradguard's modules but those that only read reports."""
    root = Path(gradguard.__file__).parent
    return digest(*_sources(root))


def versions() -> dict[str, str]:
    """Of what computes the results."""
    return {name: metadata.version(name) for name in PACKAGES}


def digest(*parts: bytes) -> str:
    """A hash of parts that keeps them apart.

    >>> digest(b"ab", b"c") == digest(b"a", b"bc"), len(digest(b""))
    (False, 40)
    """
    hashed = hashlib.blake2b(digest_size=20)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()


def _sources(root: Path) -> Iterator[bytes]:
    for path in sorted(_python_files(root)):
        yield str(path.relative_to(root)).encode()
        yield path.read_bytes()


def _python_files(folder: Path) -> Iterator[Path]:
    # Not rglob: in a checkout two of the packages are symbolic links, which it does not follow.
    for path in folder.iterdir():
        if path.is_dir() and path.name not in READERS:
            yield from _python_files(path)
        elif path.suffix in (".py", ".toml"):
            yield path


def _source(cls: type) -> bytes:
    try:
        module = inspect.getmodule(cls)
        return inspect.getsource(module).encode() if module is not None else b""
    except (OSError, TypeError):  # made in an interactive session
        return cls.__qualname__.encode()


def _bytes(tensor: torch.Tensor) -> tuple[bytes, bytes]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tuple(tensor.shape)}{tensor.dtype}".encode(), flat.view(torch.uint8).numpy().tobytes()


def _array(part: object) -> str:
    array = np.ascontiguousarray(np.asarray(part))
    return digest(str(array.dtype).encode(), str(array.shape).encode(), array.tobytes())
