"""Attackers fitted on simulated clients, and what they read of recorded messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradguard import NonFiniteGradientError
from gradguard.attacks.threat import FittedAttack, Knowledge, NotApplicableError, Observation
from gradguard.evaluation.decisions.likeness import Likeness
from gradguard.evaluation.decisions.playing import fit_all
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.exchange import Message, mean
from gradguard.evaluation.metrics import success
from gradguard.evaluation.observed.scenes import Scene, Target
from gradguard.evaluation.observed.simulated import Simulation, composition_of
from gradguard.evaluation.observed.traffic import counts_of, seen
from gradguard.evaluation.progress import Progress
from gradguard.evaluation.running.cell import CHUNK_BYTES


@dataclass(frozen=True, eq=False)
class SceneScores:
    """What attackers read of one scene's targets.

    Args:
        targets: In the order of all scores.
        calibration: Success rates on simulated messages, by attack, shape ``(messages,)``.
        scored: Success rates on the targets, by attack, shape ``(targets,)``; of a mean over
            several clients the mean over those that are asked about.
        skipped: Why other attacks have none.
        unlike: In what each target is unlike all simulated messages; empty where in nothing.
    """

    targets: tuple[Target, ...]
    calibration: dict[str, np.ndarray]
    scored: dict[str, np.ndarray]
    skipped: dict[str, str]
    unlike: tuple[tuple[str, ...], ...]


def attack_scene(
    simulation: Simulation, scene: Scene, targets: Sequence[Target], progress: Progress
) -> SceneScores:
    """Fit every attack of the study on simulated clients, and read the targets.

    Guarantees:

    - no recorded message and no truth has a part in fitting or in calibration;
    - an attack that cannot be mounted is reported with its reason and has no score.

    Raises:
        UnusableInputError: A message does not fit the model, or a simulated one is not finite.
    """
    bench, study = simulation.bench, simulation.bench.study
    assert study.client is not None  # checked before anything is fitted
    knowledge = Knowledge(
        model=simulation.model(scene.models[-1]),
        auxiliary=bench.auxiliary(),
        client=simulation.client(scene, "attacker's noise", "auxiliary"),
        num_classes=bench.data.num_classes,
        batch_size=scene.batch_size,
        composition=composition_of(bench),
        local_steps=study.client.steps(scene.batch_size),
        learning_rate=study.client.effective_rate(scene.batch_size),
        # The same simulated batches for every scene, whose backward passes are shared.
        seed=bench.seed("observed attacker", scene.batch_size),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(knowledge.seed)
            fitted, skipped = fit_all(bench.attacks, knowledge, progress)
            likeness = Likeness(bench.data.num_classes)
            calibration = _calibrated(simulation, scene, knowledge, fitted, skipped, likeness)
            scored, unlike = _scored(simulation, targets, knowledge, fitted, skipped, likeness)
    except (NonFiniteGradientError, ArithmeticError) as error:
        raise UnusableInputError(
            f"the recorded client cannot be simulated: {one_line(error)}"
        ) from error
    return SceneScores(
        *(tuple(targets), _without(calibration, skipped), _without(scored, skipped)),
        *(skipped, unlike),
    )


def _calibrated(
    simulation: Simulation,
    scene: Scene,
    knowledge: Knowledge,
    fitted: Mapping[str, FittedAttack],
    skipped: dict[str, str],
    likeness: Likeness,
) -> dict[str, np.ndarray]:
    victim = simulation.client(scene, "calibration noise", "calibration")
    batches = simulation.calibration(scene)

    def messages() -> Iterator[Message]:
        for batch in batches:
            message = victim(batch.inputs, batch.labels)
            likeness.add(message)
            yield message

    answers = _answers(messages(), knowledge, fitted, skipped)
    truth = np.stack([batch.counts for batch in batches])
    return {name: success(found, truth) for name, found in answers.items()}


def _scored(
    simulation: Simulation,
    targets: Sequence[Target],
    knowledge: Knowledge,
    fitted: Mapping[str, FittedAttack],
    skipped: dict[str, str],
    likeness: Likeness,
) -> tuple[dict[str, np.ndarray], tuple[tuple[str, ...], ...]]:
    unlike: list[tuple[str, ...]] = []
    model = simulation.bench.fresh_model(0)

    def messages() -> Iterator[Message]:
        for target in targets:
            parts = [seen(message, model) for message in target.messages]
            for message, (_, withheld) in zip(target.messages, parts, strict=True):
                check_withheld(message.path.name, withheld, simulation.withheld)
            observed = mean(part for part, _ in parts)
            unlike.append(likeness.unlike(observed))
            yield observed

    answers = _answers(messages(), knowledge, fitted, skipped)
    scores = {
        name: np.array([_success(counts, t) for counts, t in zip(found, targets, strict=True)])
        for name, found in answers.items()
    }
    return scores, tuple(unlike)


def check_withheld(name: str, found: tuple[str, ...], usual: tuple[str, ...]) -> None:
    """Raise unless a message lacks what all others lack: attackers learn from one kind."""
    if found != usual:
        odd = sorted(set(found) ^ set(usual))[0]
        raise UnusableInputError(
            f"{name}: some recorded messages have {odd!r} and some do not; give a recording of one "
            "kind of client"
        )


def _success(counts: np.ndarray, target: Target) -> float:
    truth = np.stack([counts_of(message) for message in target.asked])
    return float(success(np.broadcast_to(counts, truth.shape), truth).mean())


def _answers(
    messages: Iterable[Message],
    knowledge: Knowledge,
    fitted: Mapping[str, FittedAttack],
    skipped: dict[str, str],
) -> dict[str, np.ndarray]:
    """What every attack answers, counts ``(messages, classes)``; notes who cannot answer."""
    guessed: dict[str, list[np.ndarray]] = {}
    for observations in _chunks(messages, knowledge):
        for name, attack in fitted.items():
            if name in skipped:
                continue
            try:
                guessed.setdefault(name, []).append(attack.infer(observations).numpy())
            except NotApplicableError as error:
                skipped[name] = one_line(error)
    return {n: np.concatenate(parts) for n, parts in guessed.items() if n not in skipped}


def _chunks(messages: Iterable[Message], knowledge: Knowledge) -> Iterator[list[Observation]]:
    """A bounded number of messages at a time: those of a large model would not fit into memory."""
    held: list[Observation] = []
    size = 0
    for message in messages:
        held.append(knowledge.observe(message))
        size += sum(part.numel() * part.element_size() for part in message.values())
        if size >= CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _without(scores: dict[str, np.ndarray], skipped: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {name: found for name, found in scores.items() if name not in skipped}
