"""Which labels one message gives away, by which attacker, and how often that attacker is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradguard import Defense, LocalTraining
from gradguard.attacks.threat import Attack, Client, FittedAttack, Knowledge, NotApplicableError
from gradguard.evaluation.attackers import BLIND, select_attacks, shaped
from gradguard.evaluation.data import Data
from gradguard.evaluation.decisions.confidence import ClassReading, class_readings
from gradguard.evaluation.decisions.likeness import Likeness
from gradguard.evaluation.decisions.matching import Matched, match
from gradguard.evaluation.decisions.playing import (
    BASELINE_NAMES,
    LEAST_TRIALS,
    Message,
    Played,
    fit_all,
    play,
)
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.seeding import derive
from gradguard.evaluation.specs import AttackSpec
from gradguard.evaluation.views.sentences import NOTICEABLE

NO_DEFENSE = Defense("none", transform=[])
MOST_EXAMPLES = 100_000
LEAKS, NOT_SHOWN, NOT_MEASURED = "leaks", "not shown", "not measured"
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Answer:
    """What one attacker reads in the message, and how well it does on simulated ones.

    Args:
        attack: Its name.
        counts: How many labels of each class it answers; they sum to the batch.
        asr: The share of the labels that it reads of simulated messages, with ``ci``, its 95 %
            interval; ``advantage`` is that above the best blind guess. ``None`` if not measured.
    """

    attack: str
    counts: tuple[int, ...]
    asr: float | None = None
    ci: Interval | None = None
    advantage: float | None = None
    advantage_ci: Interval | None = None


@dataclass(frozen=True)
class Scan:
    """The result of :func:`scan`.

    Args:
        answers: Of every attacker that could be mounted, blind guesses among them.
        skipped: Why the others could not.
        worst: The best attacker on calibration messages, of those that look; ``None`` where nothing
            was measured.
        classes: What the worst attacker answers class by class, and how far that is to be believed.
        unlike: In what the message is unlike all simulated ones; see :class:`Likeness`.
        notes: What else a reader has to know.
        calibration: Simulated messages that chose the worst attacker.
        trials: Simulated messages behind every rate.
    """

    _: KW_ONLY
    batch_size: int
    num_classes: int
    answers: tuple[Answer, ...]
    skipped: dict[str, str]
    worst: str | None = None
    classes: tuple[ClassReading, ...] = ()
    unlike: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    composition: str | None = None
    calibration: int = 0
    trials: int = 0

    @property
    def answer(self) -> Answer | None:
        """The worst attacker's."""
        return next((a for a in self.answers if a.attack == self.worst), None)

    @property
    def blind_asr(self) -> float | None:
        """The share of the labels of simulated messages that the best blind guess gets."""
        return next((a.asr for a in self.answers if a.attack == BLIND), None)

    @property
    def verdict(self) -> str:
        """``"leaks"``, ``"not shown"``, ``"unclear"`` or ``"not measured"``.

        It leaks where the whole interval of any attacker's advantage is above ``NOTICEABLE``, and
        is not shown to where all intervals end at or below it. Calibration messages choose by
        chance where they are few, so what other attackers read counts as well. Where the message
        is unlike what was simulated, a low rate is not about it: that is not measured.
        """
        measured = [a.advantage_ci for a in self.answers if a.advantage_ci is not None]
        if self.answer is None or not measured:
            return NOT_MEASURED
        if any(low > NOTICEABLE for low, _ in measured):
            return LEAKS
        if self.unlike:
            return NOT_MEASURED
        return NOT_SHOWN if all(high <= NOTICEABLE for _, high in measured) else UNCLEAR

    @property
    def strongest(self) -> Answer | None:
        """The worst attacker's answer, or the one clearest above a blind guess if that is not."""
        chosen = self.answer
        if chosen is None or chosen.advantage_ci is None or chosen.advantage_ci[0] > NOTICEABLE:
            return chosen
        able = [a for a in self.answers if a.advantage_ci and a.advantage_ci[0] > NOTICEABLE]
        return max(able, key=lambda a: a.advantage_ci or (0.0, 0.0), default=chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        found = {"schema": 1, "verdict": self.verdict, "blind_asr": self.blind_asr}
        classes = [
            asdict(c) | {"confidence": c.confidence, "ci": c.ci if c.said else None}
            for c in self.classes
        ]
        return found | asdict(self) | {"classes": classes}


def scan(
    update: Mapping[str, Tensor],
    *,
    model: nn.Module,
    batch_size: int,
    data: Data | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    defense: Defense = NO_DEFENSE,
    training: LocalTraining | None = None,
    composition: str | None = None,
    attackers: str | tuple[str, ...] = "all",
    calibration: int = 100,
    trials: int = 200,
    simulated: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scan:
    """Read the labels behind one message with every attacker that can be mounted.

    With auxiliary data, messages of this client are simulated: attackers that learn are fitted on
    some, the worst attacker is chosen on others, and how often it is right is counted on a third
    set. The three share no image. Without data nothing is measured, and no rate is given.

    Guarantees:

    - the message has no part in choosing the attacker, or in any rate;
    - a rate that was not measured is ``None``;
    - the same arguments and seed give the same result, where the defence has a fixed seed or none;
    - ``model`` and torch's global random state stay as they are.

    Not guaranteed: that no better attacker exists. Rates are those of simulated messages: of the
    auxiliary images, of a client in its first round, of ``composition``.

    Args:
        update: The message by parameter name; a change of the model is *before minus after*.
        model: As it was before the round.
        batch_size: Examples behind the message.
        data: Auxiliary images, which no client has.
        num_classes, input_shape: Of the task; taken from ``data`` where it is given.
        defense: What the client runs before it sends.
        training: Local steps behind the message; ``None`` if it is a gradient.
        composition: Of batches, see :mod:`gradguard.attacks.composition`; a broad mixture if
            ``None``.
        attackers: ``"all"`` or names.
        calibration, trials: Simulated messages that choose, and that are scored, 20 at least.
        simulated: Messages that learned attackers rehearse on; their own default if ``None``.

    Raises:
        UnusableInputError: The message does not fit the model, or no attack can be mounted.
    """
    classes = data.num_classes if data is not None and num_classes is None else num_classes
    _check(batch_size, classes, calibration, trials, defense)
    matched = match(update, model)
    attacks = select_attacks(AttackSpec(attackers=attackers, simulated=simulated))
    shape = input_shape if data is None else data.input_shape
    model = copy.deepcopy(model)
    knowledge = Knowledge(
        model=model,
        auxiliary=None if data is None else (data.images, data.labels),
        num_classes=classes,
        batch_size=batch_size,
        composition=composition,
        local_steps=1 if training is None else training.steps(batch_size),
        learning_rate=None if training is None else training.effective_rate(batch_size),
        seed=derive(seed, "scan"),
    )
    reading = _Reading(matched, attacks if shape is None else shaped(attacks, shape), knowledge)
    told = progress or Silent()
    told.begin(len(attacks) + 1)
    if data is None:
        return _unmeasured(reading, told)

    def make_client(stream: str) -> Client:
        noise = derive(seed, "noise", stream)
        client = defense.client(model, batch_size=batch_size, seed=noise, training=training)
        return partial(_without, matched.withheld, client)

    return _measured(reading, make_client, calibration, trials, told)


@dataclass(frozen=True, eq=False)
class _Reading:
    """The message, who reads it, and what they know."""

    matched: Matched
    attacks: dict[str, Attack]
    knowledge: Knowledge

    def common(self, skipped: dict[str, str]) -> dict[str, Any]:
        """The fields of a :class:`Scan` that need no measurement."""
        assert self.knowledge.batch_size is not None
        assert self.knowledge.num_classes is not None
        return {
            "batch_size": self.knowledge.batch_size,
            "num_classes": self.knowledge.num_classes,
            "composition": self.knowledge.composition,
            "skipped": skipped,
            "notes": notes_of(self.matched),
        }

    def answered(
        self, fitted: Mapping[str, FittedAttack], skipped: dict[str, str]
    ) -> dict[str, tuple[int, ...]]:
        """Counts by attacker; notes in ``skipped`` who cannot read this message."""
        seen = self.knowledge.observe(self.matched.update)
        found = {}
        for name, attack in fitted.items():
            try:
                found[name] = tuple(attack.infer([seen])[0].tolist())
            except NotApplicableError as error:
                skipped[name] = one_line(error)
        return found


def _unmeasured(reading: _Reading, told: Progress) -> Scan:
    """What can be read without any data; how often that is right is not known."""
    known = reading.knowledge
    able = {
        name: attack
        for name, attack in reading.attacks.items()
        if all(getattr(known, needed) is not None for needed in attack.needs)
    }
    skipped = {n: "needs auxiliary data" for n in reading.attacks if n not in able}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(known.seed)
        fitted, refused = fit_all(able, known, told)
        skipped |= refused
        counts = reading.answered(fitted, skipped)
    if not set(counts) - BASELINE_NAMES:
        raise UnusableInputError(f"no attack can be mounted: {'; '.join(skipped.values())}")
    answers = tuple(Answer(name, found) for name, found in counts.items())
    return Scan(**reading.common(skipped), answers=answers)


def _measured(
    reading: _Reading,
    make_client: Callable[[str], Client],
    calibration: int,
    trials: int,
    told: Progress,
) -> Scan:
    known = reading.knowledge
    assert known.num_classes is not None
    likeness = Likeness(known.num_classes)
    try:
        played = play(
            make_client,
            known,
            reading.attacks,
            calibration=calibration,
            trials=trials,
            look=likeness.add,
            progress=told,
        )
    except UnusableInputError:
        raise
    except ValueError as error:
        # A defence that refuses local steps, a model that diverges, too few images of a class.
        raise UnusableInputError(f"messages cannot be simulated: {one_line(error)}") from error
    skipped = dict(played.skipped)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(known.seed)
        counts = reading.answered(played.fitted, skipped)
    if played.worst not in counts:
        raise UnusableInputError(f"{played.worst} cannot read it: {skipped[played.worst]}")
    return Scan(
        **reading.common(skipped),
        answers=tuple(_scored(played, name, found) for name, found in counts.items()),
        worst=played.worst,
        classes=class_readings(np.array(counts[played.worst]), played.answers, played.truth),
        unlike=likeness.unlike(reading.matched.update),
        calibration=calibration,
        trials=trials,
    )


def _scored(played: Played, name: str, counts: tuple[int, ...]) -> Answer:
    return Answer(
        name,
        counts,
        asr=played.rate(name),
        ci=played.rate_ci(name),
        advantage=played.advantage(name),
        advantage_ci=played.advantage_ci(name),
    )


def _without(withheld: tuple[str, ...], client: Client, inputs: Tensor, labels: Tensor) -> Message:
    """The client's message, lacking what the real one lacks: attackers are to learn from such."""
    message = client(inputs, labels)
    return message | {name: torch.zeros_like(message[name]) for name in withheld}


def _check(
    batch_size: int, classes: int | None, calibration: int, trials: int, defense: Defense
) -> None:
    if classes is None:
        raise UnusableInputError(
            "how many classes are there? Give auxiliary data, or the number of classes"
        )
    if not classes >= 2:
        raise UnusableInputError(f"expected at least 2 classes, got {classes}")
    if not 1 <= batch_size <= MOST_EXAMPLES:
        raise UnusableInputError(
            f"the batch size must be from 1 to {MOST_EXAMPLES:,}, got {batch_size}"
        )
    if not (calibration >= 1 and trials >= LEAST_TRIALS):
        raise UnusableInputError(
            f"expected calibration >= 1 and trials >= {LEAST_TRIALS}, got {calibration} and "
            f"{trials}; fewer say nothing"
        )
    if defense.cohort > 1:
        raise UnusableInputError(
            f"defence {defense.name!r} sends the sum of {defense.cohort} clients, and one message "
            "is scanned here; drop the cohort, to see what each gives away before the sum"
        )


def notes_of(matched: Matched) -> tuple[str, ...]:
    """What was done to make the message fit the model, in words."""
    notes = []
    if matched.prefix:
        notes.append(f"the prefix {matched.prefix!r} was taken off all names")
    if matched.withheld:
        notes.append(f"taken as withheld, and so in simulations: {_listed(matched.withheld)}")
    if matched.unread:
        notes.append(f"sent along and read by no attack here: {_listed(matched.unread)}")
    return tuple(notes)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
