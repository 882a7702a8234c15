"""The content hash of a unit of work: everything that its result depends on, and nothing else.

Two studies that share a unit share its hash, and so its result. What is computed beside it, in how
many processes and in which order, is not in it. The sources of gradguard are: results of one
version are never taken for those of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import gradguard
from gradguard import Defense
from gradguard.evaluation.data import Data
from gradguard.evaluation.running.bench import Bench, per_seed
from gradguard.evaluation.running.own_code import (
    content,
    digest,
    evaluated,
    model_code,
    probe,
    raw,
)
from gradguard.evaluation.running.store import check_storable
from gradguard.evaluation.running.units import Attacked, Trained, Undefended, Unit, Weighed
from gradguard.evaluation.study import Study

READERS = ("__pycache__", "views", "commands", "decisions", "search")
"""Folders without a part in any result."""

OF_A_LOOP = ("steps", "batch_size", "learning_rate", "momentum")
"""Settings of training that clients at a fresh model have nothing of."""

PACKAGES = ("torch", "numpy", "scipy", "opacus", "scikit-learn")


class Keys:
    """The hashes of a study's units.

    Guarantees:

    - adding, removing or reordering other defences, models or conditions changes no hash;
    - a change of data, weights, seed, settings, sources or versions changes it; so does one of a
      model's or a transform's code that shows in messages of a few images, or in a model's answer
      to them in evaluation mode.

    Not guaranteed: that other changes of a user's code are noticed where they are neither in the
    module of a layer's class, nor in that of a transform's.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench, study, parts = bench, bench.study, bench.parts
        self._common = {
            "sources": sources_digest(),
            "versions": versions(),
            "seed": study.seed,
            "data": data_digest(bench.data),
            "client": None if study.client is None else study.client.to_dict(),
        }
        # How many models there are is no business of any one of them.
        training = {key: v for key, v in asdict(study.training).items() if key != "seeds"}
        self._training = {"training": training, "test": _array(parts.test)}
        self._attack = {
            "attacks": {name: repr(attack) for name, attack in bench.attacks.items()},
            "batches": {which: _per_seed(study, which) for which in ("trials", "calibration")},
            "parts": [_array(p) for p in (parts.calibration, parts.scored, parts.auxiliary)],
            "participation": study.attack.participation,
            "auxiliary_shift": study.attack.auxiliary_shift,
            # All that clients at a fresh model have of training is their loss.
            "training": {key: v for key, v in training.items() if key not in OF_A_LOOP},
        }
        self._models: dict[int, str] = {}
        self._defenses = {d.name: self._described(d) for d in study.defenses}

    def of(self, unit: Unit) -> str:
        """The unit's hash: 40 hexadecimal digits.

        Raises:
            UnusableInputError: The unit's model could not be kept, once it is trained.
        """
        parts = self._bench.parts
        facts: dict[str, Any] = {"unit": type(unit).__name__, **self._common}
        match unit:
            case Attacked(defense, cell, repeat):
                facts |= {"defense": self._defenses[defense], "cell": asdict(cell)}
                facts |= {"attack": self._attack, "model": self._model(repeat), "repeat": repeat}
                if cell.stage == "trained":
                    facts["undefended"] = self.of(Undefended(repeat))
            case Trained(defense, repeat):
                facts |= {"defense": self._defenses[defense], "part": _array(parts.client)}
                facts |= {"model": self._model(repeat), "repeat": repeat} | self._training
            case Weighed(defense):
                facts |= {"defense": self._defenses[defense], "part": _array(parts.client)}
                facts |= {"model": self._model(0)} | self._training
            case Undefended(repeat):
                check_storable(self._bench.fresh_model(repeat).state_dict())
                facts |= {
                    "model": self._model(repeat),
                    "repeat": repeat,
                    "part": _array(parts.history),
                }
                facts |= self._training
        return digest(json.dumps(facts, sort_keys=True, default=repr).encode())

    def _model(self, repeat: int) -> str:
        if repeat not in self._models:
            model = model_digest(self._bench.fresh_model(repeat))
            bare = probe(self._bench, Defense("none", transform=[]), repeat)
            self._models[repeat] = f"{model} {bare} {evaluated(self._bench, repeat)}"
        return self._models[repeat]

    def _described(self, defense: Defense) -> object:
        """A defence as plain data; one with a transform of the user's own by what it is and does.

        Not by its ``repr``: of a class that has none it is another one in every process.
        """
        try:
            return defense.to_dict()
        except ValueError:
            own = {"name": defense.name, "cohort": defense.cohort, "dp": repr(defense.dp)}
            sent = probe(self._bench, defense, 0)
            return own | {"content": content(defense.chain), "sent": sent}


def _per_seed(study: Study, which: str) -> int:
    return per_seed(getattr(study.attack, which), study.attacked_seeds)


def data_digest(data: Data) -> str:
    """Images, labels and the number of classes; not what the data are called."""
    classes = str(data.num_classes).encode()
    return digest(classes, *raw(data.images), *raw(data.labels))


def model_digest(model: nn.Module) -> str:
    """Architecture, initial weights, and code and content of layers that are not torch's."""
    parts = [repr(model).encode(), model_code(model).encode()]
    for name, value in model.state_dict().items():
        # What is no tensor comes from a layer's get_extra_state.
        held = raw(value) if isinstance(value, Tensor) else [content(value).encode()]
        parts += [name.encode(), *held]
    return digest(*parts)


@cache
def sources_digest() -> str:
    """All of gradguard's modules but those that only read reports."""
    root = Path(gradguard.__file__).parent
    return digest(*_sources(root))


def versions() -> dict[str, str]:
    """Of what computes the results."""
    return {name: metadata.version(name) for name in PACKAGES}


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


def _array(part: object) -> str:
    array = np.ascontiguousarray(np.asarray(part))
    return digest(str(array.dtype).encode(), str(array.shape).encode(), array.tobytes())
