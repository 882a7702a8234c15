"""Attackers fitted on auxiliary data and scored on simulated messages of the same client.

The auxiliary data is cut into three parts without a common image: one that attackers learn from,
one that decides which of them is the worst, and one that says how good that one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks import BASELINES
from gradguard.attacks.simulation import Pool, rehearse
from gradguard.attacks.threat import (
    Attack,
    Client,
    FittedAttack,
    Knowledge,
    NotApplicableError,
    Observation,
)
from gradguard.evaluation.attackers import BLIND, attack_name
from gradguard.evaluation.decisions.confidence import exact_interval
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.metrics import Interval, Resampler, advantage, success
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.running.cell import CHUNK_BYTES
from gradguard.evaluation.running.rows import worst_attack
from gradguard.evaluation.seeding import derive

FITTING, CALIBRATION = 0.5, 0.4
"""Share of the images to learn from; and of the rest, the share that chooses the worst attack."""

LEAST_TRIALS = 20
"""Scored messages below which an interval says nothing: resampling a few knows only those few."""

BASELINE_NAMES = frozenset(attack_name(attack) for attack in BASELINES)

Message = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Played:
    """What attackers read of simulated messages.

    Args:
        fitted: The attackers that could be mounted, by name.
        skipped: Why the others could not.
        worst: The best on calibration messages of those that look. A blind guess is above itself
            by nothing, with an interval of no width: chosen, it would hide how little is known.
        scored: Success rates on scored messages, shape ``(messages,)``, by attacker.
        answers: What the worst attacker answered to them, counts ``(messages, classes)``.
        truth: What was true, ``(messages, classes)``.
        seed: Of the intervals.
    """

    fitted: dict[str, FittedAttack]
    skipped: dict[str, str]
    worst: str
    scored: dict[str, np.ndarray]
    answers: np.ndarray
    truth: np.ndarray
    seed: int

    def rate(self, name: str) -> float:
        """The share of the labels that an attacker reads."""
        return float(self.scored[name].mean())

    def rate_ci(self, name: str) -> Interval:
        """95 % interval of :meth:`rate`, over batches and for this model."""
        low, high = self._resampler.rate_ci(self.scored[name][None])
        surely, possibly = self._exact_ends(name)
        return min(low, surely), max(high, possibly)

    def advantage(self, name: str) -> float:
        """How far above the best blind guess it is."""
        return advantage(self.rate(name), self.rate(BLIND))

    def advantage_ci(self, name: str) -> Interval:
        """95 % interval of :meth:`advantage`.

        Where the blind guess was right throughout, an attacker had nothing to show, and may be
        able to read anything: the interval ends at 1.
        """
        blind = self.rate(BLIND)
        low, high = self._resampler.advantage_ci(self.scored[name][None], self.scored[BLIND][None])
        if name == BLIND:
            return low, high
        surely, possibly = self._exact_ends(name)
        upper = advantage(possibly, blind) if blind < 1 else 1.0
        return min(low, advantage(surely, blind)), max(high, upper)

    def _exact_ends(self, name: str) -> Interval:
        """The lower end for an attacker right throughout, the upper for one that never was.

        1 and 0 for others. Resampling scores that are all the same gives an interval of no width.
        """
        scores = self.scored[name]
        number = len(scores)
        surely = exact_interval(number, number)[0] if bool((scores == 1).all()) else 1.0
        possibly = exact_interval(0, number)[1] if bool((scores == 0).all()) else 0.0
        return surely, possibly

    @property
    def _resampler(self) -> Resampler:
        return Resampler.draw(seeds=1, batches=len(self.truth), seed=self.seed)


def play(
    make_client: Callable[[str], Client],
    knowledge: Knowledge,
    attacks: Mapping[str, Attack],
    *,
    calibration: int,
    trials: int,
    look: Callable[[Message], None] | None = None,
    progress: Progress | None = None,
) -> Played:
    """Fit every attack and score it on messages that it has not seen.

    Guarantees:

    - no image is in two of the parts;
    - the noise of the attackers' rehearsals and of the scored messages are independent streams;
    - torch's global random state on the CPU is as it was.

    Args:
        make_client: A fresh client for each of the streams ``"attacker"`` and ``"victims"``.
        knowledge: With ``auxiliary``, ``num_classes`` and ``batch_size``; ``client`` is set here.
        attacks: By name, the blind baseline among them.
        look: Called with every calibration and scored message.

    Raises:
        UnusableInputError: No attack but the blind guesses could be mounted.
    """
    assert knowledge.auxiliary is not None  # both callers have checked these
    assert knowledge.num_classes is not None
    told = progress or Silent()
    rng = np.random.default_rng(derive(knowledge.seed, "parts"))
    pool = Pool.of(*knowledge.auxiliary, knowledge.num_classes)
    learning, rest = pool.split(FITTING, rng)
    choosing, judging = rest.split(CALIBRATION, rng)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(knowledge.seed, "global state"))
        known = replace(knowledge, auxiliary=_examples(learning), client=make_client("attacker"))
        fitted, skipped = fit_all(attacks, known, told)
        victims = make_client("victims")
        told.doing("simulated messages")
        chosen, _, _ = _answered(
            fitted, skipped, known, victims, choosing, calibration, derive(known.seed, "c"), look
        )
        scored, answers, truth = _answered(
            fitted, skipped, known, victims, judging, trials, derive(known.seed, "s"), look
        )
    told.advance()
    if not set(scored) - BASELINE_NAMES:
        raise UnusableInputError(
            f"no attack could be mounted, so nothing was measured: {'; '.join(skipped.values())}"
        )
    worst = worst_attack({name: chosen[name] for name in scored if name not in BASELINE_NAMES})
    able = {name: attack for name, attack in fitted.items() if name in scored}
    return Played(able, skipped, worst, scored, answers[worst], truth, derive(known.seed, "ci"))


def fit_all(
    attacks: Mapping[str, Attack], knowledge: Knowledge, progress: Progress
) -> tuple[dict[str, FittedAttack], dict[str, str]]:
    """The attacks that can be mounted, and why the others cannot."""
    fitted: dict[str, FittedAttack] = {}
    skipped: dict[str, str] = {}
    for name, attack in attacks.items():
        progress.doing(name)
        try:
            fitted[name] = attack.fit(knowledge)
        except NotApplicableError as error:
            skipped[name] = one_line(error)
        progress.advance()
    return fitted, skipped


def _examples(pool: Pool) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.concatenate(pool.by_class))
    return pool.inputs[rows], pool.labels[rows]


def _answered(
    fitted: Mapping[str, FittedAttack],
    skipped: dict[str, str],
    knowledge: Knowledge,
    client: Client,
    pool: Pool,
    number: int,
    seed: int,
    look: Callable[[Message], None] | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Success rates and answers by attacker, and the truth; notes who cannot answer at all."""
    assert knowledge.batch_size is not None
    guessed: dict[str, list[np.ndarray]] = {}
    true: list[np.ndarray] = []
    rng = np.random.default_rng(seed)
    pairs = rehearse(client, pool, knowledge.composition, knowledge.batch_size, number, rng)
    for observations, counts in _chunks(pairs, knowledge, look):
        true.extend(counts)
        for name, attack in fitted.items():
            if name not in skipped:
                try:
                    guessed.setdefault(name, []).append(attack.infer(observations).numpy())
                except NotApplicableError as error:
                    skipped[name] = one_line(error)
    truth = np.stack(true)
    answers = {n: np.concatenate(parts) for n, parts in guessed.items() if n not in skipped}
    return {name: success(found, truth) for name, found in answers.items()}, answers, truth


def _chunks(
    pairs: Iterator[tuple[Message, np.ndarray]],
    knowledge: Knowledge,
    look: Callable[[Message], None] | None,
) -> Iterator[tuple[list[Observation], list[np.ndarray]]]:
    """A bounded number of messages at a time: those of a large model would not fit into memory."""
    observations: list[Observation] = []
    counts: list[np.ndarray] = []
    held = 0
    for message, true in pairs:
        if look is not None:
            look(message)
        observations.append(knowledge.observe(message))
        counts.append(true)
        held += sum(part.numel() * part.element_size() for part in message.values())
        if held >= CHUNK_BYTES:
            yield observations, counts
            observations, counts, held = [], [], 0
    if observations:
        yield observations, counts
