"""Attack one defence under one set of conditions: messages out, label counts back, scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gradguard import Defense, NonFiniteGradientError
from gradguard.attacks.threat import FittedAttack, Knowledge, NotApplicableError, Observation
from gradguard.evaluation.batches import Batch
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.exchange import Exchange
from gradguard.evaluation.metrics import success
from gradguard.evaluation.progress import Progress
from gradguard.evaluation.running.bench import Bench, Cell
from gradguard.evaluation.running.memo import MemoisedClient
from gradguard.finite import NonFiniteExampleError

# Messages held at a time: a hundred gradients of a large model would not fit into memory.
CHUNK_BYTES = 128 * 2**20

SETS = ("calibration", "scored")


@dataclass(frozen=True, eq=False)
class CellScores:
    """Success rates by attack name, shape ``(seeds, batches)``, and who could not be mounted."""

    calibration: dict[str, np.ndarray]
    scored: dict[str, np.ndarray]
    skipped: dict[str, str]

    @classmethod
    def joined(cls, seeds: Sequence[CellScores]) -> CellScores:
        """The scores of several models; an attack that one of them rules out is skipped."""
        skipped = {name: why for scores in seeds for name, why in scores.skipped.items()}
        parts = [
            {
                name: np.concatenate([getattr(scores, which)[name] for scores in seeds])
                for name in getattr(seeds[0], which)
                if name not in skipped
            }
            for which in SETS
        ]
        return cls(parts[0], parts[1], skipped)


def attack_cell(bench: Bench, cell: Cell, defense: Defense, progress: Progress) -> CellScores:
    """Run every attack of the study against ``defense``, at every attacked model.

    Raises:
        UnusableInputError: A gradient or message is not finite.
    """
    repeats = range(bench.study.attacked_seeds)
    return CellScores.joined([attack_model(bench, cell, defense, r, progress) for r in repeats])


def attack_model(
    bench: Bench, cell: Cell, defense: Defense, repeat: int, progress: Progress
) -> CellScores:
    """Run every attack of the study against ``defense``, at the model of one seed.

    Guarantees:

    - the victims' noise and the noise in the attacker's simulations are independent streams;
    - the attacker is fitted on auxiliary images only;
    - an attack that cannot be mounted is reported with its reason and has no score.

    Raises:
        UnusableInputError: A gradient or message is not finite.
    """
    try:
        fitted, skipped = _fit(bench, cell, defense, repeat, progress)
        found = [_score(bench, cell, defense, repeat, name, fitted) for name in SETS]
    except (NonFiniteGradientError, NonFiniteExampleError) as error:
        raise UnusableInputError(
            f"defence {defense.name!r} cannot be attacked ({cell.stage}, {cell.composition}, "
            f"B = {cell.batch_size}): {one_line(error)}"
        ) from error
    parts = [{attack: scores[None] for attack, scores in part.items()} for part in found]
    return CellScores(parts[0], parts[1], skipped)


def _fit(
    bench: Bench,
    cell: Cell,
    defense: Defense,
    repeat: int,
    progress: Progress,
) -> tuple[dict[str, FittedAttack], dict[str, str]]:
    model = bench.model(cell.stage, repeat)
    knowledge = Knowledge(
        model=model,
        auxiliary=bench.auxiliary(),
        client=_exchange(bench, cell, defense, repeat, model, ("attacker's noise",), "auxiliary"),
        num_classes=bench.data.num_classes,
        batch_size=cell.batch_size,
        composition=cell.composition,
        **_told(bench, cell),
        # Not the defence's name: the same simulated batches for every defence share their
        # backward passes, and pair the comparison between defences.
        seed=bench.seed("attacker", cell.stage, cell.composition, cell.batch_size, repeat),
    )
    fitted, skipped = {}, {}
    for name, attack in bench.attacks.items():
        progress.doing(f"{defense.name}: {name}")
        try:
            # An attack's own passes through a model with dropout draw from the global state.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(knowledge.seed)
                fitted[name] = attack.fit(knowledge)
        except NotApplicableError as error:
            skipped[name] = one_line(error)
    return fitted, skipped


def _score(
    bench: Bench,
    cell: Cell,
    defense: Defense,
    repeat: int,
    which: str,
    fitted: dict[str, FittedAttack],
) -> dict[str, np.ndarray]:
    batches = bench.batches(which, cell, repeat)
    guessed: dict[str, list[np.ndarray]] = {name: [] for name in fitted}
    for observations in _messages(bench, cell, defense, repeat, which, batches):
        for name, attack in fitted.items():
            guessed[name].append(_counts(name, attack, observations))
    true = np.stack([batch.counts for batch in batches])
    return {name: success(np.concatenate(parts), true) for name, parts in guessed.items()}


def _messages(
    bench: Bench, cell: Cell, defense: Defense, repeat: int, which: str, batches: list[Batch]
) -> Iterator[list[Observation]]:
    """What the server sees of ``batches``, a bounded number of messages at a time."""
    model = bench.model(cell.stage, repeat)
    victim = _exchange(bench, cell, defense, repeat, model, ("victims' noise", which), which)
    size = sum(4 * p.numel() for p in model.parameters())
    chunk = max(1, CHUNK_BYTES // size)
    for start in range(0, len(batches), chunk):
        yield [
            Observation(
                victim(batch.inputs, batch.labels),
                cell.batch_size,
                bench.data.num_classes,
                **_told(bench, cell),
            )
            for batch in batches[start : start + chunk]
        ]


def _told(bench: Bench, cell: Cell) -> dict[str, Any]:
    """What the server knows of a client's local training; nothing where there is none."""
    training, size = bench.study.client, cell.batch_size
    if training is None:
        return {}
    return {
        "local_steps": training.steps(size),
        "learning_rate": training.effective_rate(size),
    }


def _exchange(
    bench: Bench,
    cell: Cell,
    defense: Defense,
    repeat: int,
    model: nn.Module,
    stream: tuple[str, ...],
    which: str,
) -> Exchange:
    """What the server sees of one client, beside others that hold images of ``which``."""
    study = bench.study
    names = (*stream, defense.name, cell.stage, cell.composition, cell.batch_size, repeat)
    client = defense.client(
        model,
        loss=study.training.criterion,
        # Not the rounds: then more rounds begin with the messages of fewer.
        seed=bench.seed(*names),
        batch_size=cell.batch_size,
        training=study.client,
    )
    return Exchange(
        MemoisedClient(client, bench.memo(cell, repeat)),
        rounds=cell.rounds,
        participation=study.attack.participation,
        cohort=defense.cohort,
        others=bench.others(which, cell, repeat) if defense.cohort > 1 else None,
        seed=bench.seed("participation", *names),
    )


def _counts(name: str, attack: FittedAttack, observations: list[Observation]) -> np.ndarray:
    counts = attack.infer(observations)
    first = observations[0]
    expected = (len(observations), first.num_classes)
    # More labels than the batch has would inflate the score, which divides by the batch.
    sums = (counts.sum(dim=1) == first.batch_size) if counts.shape == expected else None
    if counts.dtype != torch.int64 or sums is None or not sums.all() or bool((counts < 0).any()):
        raise ValueError(
            f"{name} must answer int64 counts of shape {expected} that sum to "
            f"{first.batch_size}, got {counts.dtype} of shape {tuple(counts.shape)}"
        )
    return counts.numpy()
