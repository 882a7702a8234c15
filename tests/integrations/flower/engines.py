"""Runs on Flower's own engines, and what they are compared with: the same in a plain loop."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradguard import Defense, UpdateGuard
from gradguard.dp import PrivacyLedger
from gradguard.updates.recorded import Recording, read_recording
from tests.integrations.flower.hostile_app.hostile import examples, initial_model, trained

HERE = Path(__file__).parent
HOSTILE = HERE / "hostile_app"
EXAMPLE = HERE.parents[2] / "examples" / "flower"


def example_module(name: str) -> Any:
    """A script of the example: as when it is run, its folder is where it looks for the others."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLE))


@dataclass(frozen=True)
class Watched:
    """What a run of the hostile app has written."""

    recording: Recording
    server: dict[str, Any]
    messages: list[dict[str, Any]]

    def metric(self, name: str) -> list[float]:
        """By round."""
        return [self.server["metrics"][str(number)][name] for number in (1, 2, 3)]

    def model(self) -> dict[str, Tensor]:
        """After the last round."""
        return {name: torch.tensor(values) for name, values in self.server["model"].items()}

    def of(self, partition: int) -> list[dict[str, Any]]:
        """What one client noted, by round."""
        found = [m for m in self.messages if m["partition"] == partition]
        return sorted(found, key=lambda m: m["round"])


def watched(folder: Path, output: str) -> Watched:
    """What is in ``folder`` after a run that printed ``output``."""
    assert (folder / "server.json").exists(), output
    return Watched(
        read_recording(folder / "observed"),
        json.loads((folder / "server.json").read_text()),
        [json.loads(path.read_text()) for path in folder.glob("?-*.json")],
    )


class PlainLoop:
    """The hostile app's clients in one loop, without Flower; each has its guard and keeps it."""

    def __init__(self, defense: Defense, seeds: Sequence[int]) -> None:
        self.model = initial_model()
        self.guards = [UpdateGuard(defense.chain, self.model) for _ in seeds]
        for guard, seed in zip(self.guards, seeds, strict=True):
            guard.reset(seed)
        self.number = 0

    def round(self, partitions: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """The updates of those who take part; their weighted mean is applied to the model."""
        self.number += 1
        updates = {
            p: self.guards[p].protect(self.model, trained(self.model, p, self.number))
            for p in partitions
        }
        total = sum(examples(p) for p in partitions)
        for name, old in self.model.items():
            moved = [updates[p][name].double() * examples(p) / total for p in partitions]
            self.model[name] = (old + torch.stack(moved).sum(dim=0)).float()
        return updates


def rows_of(output: str, mode: str) -> list[list[str]]:
    """The words in the rows of the example's table: round, accuracy, bytes sent, dense bytes."""
    table = example_module("run").table_in(output, mode)
    assert table, output
    return [line.split() for line in table.splitlines()[1:]]


def check_epsilons(rows: list[list[str]], *, sample_rate: float, releases: int) -> None:
    """That DP-SGD's epsilon of every round is of all rounds so far.

    Args:
        sample_rate: Of one release.
        releases: In one round.
    """
    assert len(rows) == 3
    ledger = PrivacyLedger("prv")
    for number, row in enumerate(rows, start=1):
        for _ in range(releases):
            ledger.charge(1.0, sample_rate=sample_rate)
        words = f"{ledger.epsilon(1e-4):.3f} at delta 0.0001 for one example, after"
        assert row[4:] == [*words.split(), str(releases * number), "releases"]
