"""Rehearse once, for all attacks that learn: the fitted bank, and every answer that judges it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradguard.attacks.baselines import BestConstant
from gradguard.attacks.bias_count import BiasCount
from gradguard.attacks.fingerprint import fingerprint
from gradguard.attacks.ilrg import ILRG
from gradguard.attacks.learning.bank import Candidate, fit_bank
from gradguard.attacks.learning.offset import constant_offset
from gradguard.attacks.learning.readings import Reader, Readings
from gradguard.attacks.learning.rehearsal import Rehearsal
from gradguard.attacks.llg import LLG
from gradguard.attacks.llg_plus import LLGPlus
from gradguard.attacks.negative_columns import NegativeColumns
from gradguard.attacks.rlu import RLU
from gradguard.attacks.rounding import round_to_batch
from gradguard.attacks.simulation import Message
from gradguard.attacks.template import FittedTemplateRegression, TemplateRegression
from gradguard.attacks.threat import (
    Attack,
    FittedAttack,
    Knowledge,
    Observation,
)

MEMBERS: tuple[Attack, ...] = (
    LLG(),
    LLGPlus(),
    NegativeColumns(),
    BiasCount(),
    ILRG(),
    RLU(),
    TemplateRegression("all"),
)
"""Attacks that answer along with the bank, each where the attacker knows enough to mount it."""

PILOTS = 8
COORDINATES = 2**15  # of the head and of the body, each; 4 bytes per coordinate and message
JUDGING_SHARE = 0.3  # judging batches per fitting batch
SHOWN = 16  # messages in memory at a time, fewer of a large model
SHOWN_BYTES = 64 * 2**20

# Standard errors by which the best of many must beat the blind guess: the best of twenty answers
# that say nothing is above it by about this much.
ONE_OF_MANY = 2.0


@dataclass(frozen=True, eq=False)
class Practice:
    """The bank fitted on rehearsed messages, and all answers to other ones.

    Args:
        rehearsal: Where the messages came from.
        reader: Reads messages as the bank expects them.
        candidates: The fitted bank.
        members: Other fitted attacks.
        answers: Shares that the candidates, then the members, answer for the judging messages:
            an array ``(messages, classes)`` for each of them.
        truth: True counts of the judging messages, ``(messages, classes)``.
        blind: The best constant guess, counts ``(classes,)``.
    """

    rehearsal: Rehearsal
    reader: Reader
    candidates: tuple[Candidate, ...]
    members: tuple[FittedAttack, ...]
    answers: tuple[np.ndarray, ...]
    truth: np.ndarray
    blind: np.ndarray


Key = tuple[int, str | None, bytes]
_practised: weakref.WeakKeyDictionary[Knowledge, dict[Key, Practice]] = weakref.WeakKeyDictionary()


def practise(knowledge: Knowledge, simulated: int, head: str | None) -> Practice:
    """Rehearse and fit the bank: once for a ``Knowledge`` whose model has not changed since."""
    known = _practised.setdefault(knowledge, {})
    stamp = b"" if knowledge.model is None else fingerprint(knowledge.model)
    key = simulated, head, stamp
    if key not in known:
        known.clear()  # one at a time: the fitted bank of a large model is large
        known[key] = _practise(knowledge, simulated, head)
    return known[key]


def _practise(knowledge: Knowledge, simulated: int, head: str | None) -> Practice:
    rehearsal = Rehearsal.of(knowledge)
    size = rehearsal.batch_size
    pilots = [message for message, _ in rehearsal.fitting(PILOTS)]
    reader = Reader.fit(
        *(pilots, rehearsal.classes, COORDINATES, rehearsal.rng(1)),
        head_name=head,
        offset=constant_offset(knowledge),
    )
    members = _mounted(knowledge, head)
    fitted, counts, _ = _read(knowledge, reader, rehearsal.fitting(simulated), ())
    trials = rehearsal.judging(round(JUDGING_SHARE * simulated))
    judged, truth, told = _read(knowledge, reader, trials, members)
    members = tuple(member for member, answer in zip(members, told, strict=True) if answer)

    def score(shares: np.ndarray) -> float:
        return float(overlap(round_to_batch(shares * size, size), truth).mean())

    candidates = tuple(fit_bank(fitted, counts / size, judged, score, rehearsal.seed))
    answers = [candidate.judged for candidate in candidates]
    answers += [np.concatenate(answer) / size for answer in told if answer]
    blind, _ = BestConstant().fit(knowledge).best(size)
    return Practice(rehearsal, reader, candidates, members, tuple(answers), truth, blind)


def _mounted(knowledge: Knowledge, head: str | None) -> tuple[FittedAttack, ...]:
    """The members that can be mounted with this knowledge on this model."""
    fitted: list[FittedAttack] = []
    for attack in MEMBERS:
        if all(getattr(knowledge, name) is not None for name in attack.needs):
            named: Attack = replace(attack, head=head)  # type: ignore[type-var]
            try:
                fitted.append(named.fit(knowledge))
            except ValueError:
                continue  # say, a head without bias or of its own kind: the others answer
    return tuple(fitted)


def _read(
    knowledge: Knowledge,
    reader: Reader,
    rehearsed: Iterator[tuple[Message, np.ndarray]],
    members: Sequence[FittedAttack],
) -> tuple[Readings, np.ndarray, list[list[np.ndarray]]]:
    """Readings and true counts of messages, and what each member answers to the same messages.

    A member that cannot read one of them has no answers at all.
    """
    truths: list[np.ndarray] = []
    answers: list[list[np.ndarray]] = [[] for _ in members]
    able = [True for _ in members]

    def messages() -> Iterator[Message]:
        for shown in _chunks(rehearsed, SHOWN if members else 1):
            truths.extend(truth for _, truth in shown)
            seen = [knowledge.observe(message) for message, _ in shown]
            for i, member in enumerate(members):
                try:
                    answers[i] += [estimated(member, seen)] if able[i] else []
                except ValueError:  # say, a tensor that the model has is not sent
                    able[i], answers[i] = False, []
            del seen
            while shown:  # let go of one by one: each may be as large as the model
                yield shown.pop(0)[0]

    readings = reader.read(messages())
    return readings, np.stack(truths), answers


def estimated(member: FittedAttack, seen: Sequence[Observation]) -> np.ndarray:
    """A member's counts; those of templates before they are made whole."""
    if isinstance(member, FittedTemplateRegression):
        return member.estimate(seen)
    counts: np.ndarray = member.infer(seen).numpy()
    return counts


def _chunks(
    pairs: Iterable[tuple[Message, np.ndarray]], size: int
) -> Iterator[list[tuple[Message, np.ndarray]]]:
    """At most ``size`` messages at a time, and no more than so many bytes if one does not have."""
    chunk: list[tuple[Message, np.ndarray]] = []
    held = 0
    for pair in pairs:
        chunk.append(pair)
        held += sum(t.numel() * t.element_size() for t in pair[0].values())
        del pair
        if len(chunk) >= size or held >= SHOWN_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def overlap(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Multiset overlap of each row, in [0, 1]."""
    shared: np.ndarray = np.minimum(found, truth).sum(axis=1) / truth.sum(axis=1)
    return shared


def clearly_above(found: np.ndarray, other: np.ndarray, *, errors: float) -> bool:
    """Above by more than so many standard errors of the paired difference."""
    gain = found - other
    return bool(gain.mean() > errors * gain.std(ddof=1) / np.sqrt(len(gain)))
