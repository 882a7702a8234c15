"""From scores to a row: which attack is the worst case, how well it does, what it costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gradguard import Defense
from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.certificates.certify import certify, run_epsilon
from gradguard.evaluation.federated import round_overhead, train_federated
from gradguard.evaluation.knowledge import attacks_by_level
from gradguard.evaluation.message_size import bytes_per_update
from gradguard.evaluation.metrics import Resampler, advantage, t_interval
from gradguard.evaluation.report import AttackScore, KnowledgeScore, Row
from gradguard.evaluation.running.bench import Bench, Cell
from gradguard.evaluation.running.cell import CellScores
from gradguard.evaluation.training import Outcome, step_overhead, train


@dataclass(frozen=True)
class Cost:
    """What a defence costs, whatever the attack: accuracy per seed, time per step, and bytes."""

    accuracies: tuple[float, ...]
    diverged: bool
    step_overhead: float
    dense_bytes: int
    bytes_per_update: float | None = None


def train_defended(bench: Bench, defense: Defense, repeat: int) -> Outcome:
    """One training run with ``defense``, as its clients would train."""
    images, local = bench.part(bench.parts.client), bench.study.client
    # The loop of a deployed client, unless the server needs several or they train locally.
    run = train
    if defense.cohort > 1 or local is not None:
        run = partial(train_federated, training=local)
    return run(
        bench.fresh_model(repeat),
        images,
        bench.part(bench.parts.test),
        spec=bench.study.training,
        seed=bench.seed("training", repeat),
        defense=defense,
    )


def weigh(bench: Bench, defense: Defense) -> tuple[float, float | None]:
    """The time of a step over that of a bare one, and the mean bytes of a client's messages."""
    images, spec = bench.part(bench.parts.client), bench.study.training
    local = bench.study.client
    if local is None:
        overhead = step_overhead(bench.builder(0), images, spec=spec, defense=defense)
    else:
        overhead = round_overhead(
            bench.fresh_model(0), images, spec=spec, defense=defense, training=local
        )
    sent = bytes_per_update(
        *(bench.fresh_model(0), images),
        spec=spec,
        seed=bench.seed("message size"),
        defense=defense,
        training=local,
    )
    return overhead, sent


def worst_attack(calibration: dict[str, np.ndarray]) -> str:
    """The attack with the highest mean success on calibration batches; the earlier on a tie.

    The blind baselines are candidates, so that the worst case is not chosen below them.
    """
    return max(calibration, key=lambda name: float(calibration[name].mean()))


def worst_by_knowledge(
    calibration: dict[str, np.ndarray],
    attacks: Mapping[str, AttackScore],
    needs: Mapping[str, Collection[str]],
) -> dict[str, KnowledgeScore]:
    """The worst case of every level of knowledge.

    Guarantees:

    - chosen on calibration batches alone, among the attacks that the level can run;
    - the highest level's is :func:`worst_attack`.

    Not guaranteed: that the score does not fall from one level to the next. What is best on
    calibration batches may be a little less good on others.

    Args:
        attacks: Their scores on the scored batches.
        needs: What each attack needs to know; attacks without calibration are left out.
    """
    found = {}
    for level, names in attacks_by_level({name: needs[name] for name in calibration}).items():
        name = worst_attack({name: calibration[name] for name in names})
        score = attacks[name]
        found[level] = KnowledgeScore(name, score.asr, score.ci, score.advantage)
    return found


def guarantees(bench: Bench, cell: Cell, defense: Defense) -> dict[str, Any]:
    """The row's ``epsilon``, ``delta`` and ``certificate``; all ``None`` without DP-SGD.

    Epsilon is that of one training run on the clients' data, batches drawn as DP-SGD draws them;
    or, where that is more, of the attacked rounds, in all of which a record may take part.
    """
    dp, training = defense.dp, bench.study.training
    if dp is None:
        return {"epsilon": None, "delta": None, "certificate": None}
    # As Opacus has it: one over the number of full batches in an epoch.
    batches = max(1, len(bench.parts.client) // training.batch_size)
    rate, steps = 1 / batches, training.steps
    if defense.cohort > 1:
        # Its clients take batch after batch of shuffled data: no secret sampling, and every record
        # is in one message per pass over the data.
        rate, steps = 1.0, math.ceil(defense.cohort * training.steps / batches)
    certificate = certify(
        dp,
        composition=cell.composition,
        batch_size=cell.batch_size,
        # All of them: with less than certain participation an upper value.
        releases=cell.rounds,
        # The share behind "iid" batches, see `draw_batches`.
        label_prior=_shares(bench, bench.parts.scored),
        training_releases=steps,
        sample_rate=rate,
        # Small classes are rounded up in every part: all of the data may be less even than it.
        run_prior=_shares(bench, bench.parts.client),
    )
    epsilon = _run_epsilon(dp, steps, rate)
    if cell.rounds > 1:
        epsilon = max(epsilon, _run_epsilon(dp, cell.rounds, 1.0))
    return {"epsilon": epsilon, "delta": dp.delta, "certificate": certificate}


def _shares(bench: Bench, part: np.ndarray) -> np.ndarray:
    """The share of each class among some of the images."""
    counts = np.bincount(bench.data.labels.numpy()[part], minlength=bench.data.num_classes)
    return np.asarray(counts / counts.sum())


# Seconds of accounting, and the same for all rows of a defence.
_run_epsilon = lru_cache(maxsize=256)(run_epsilon)


def make_row(
    defense: Defense,
    cell: Cell,
    scores: CellScores,
    cost: Cost,
    *,
    needs: Mapping[str, Collection[str]],
    seed: int,
    guaranteed: dict[str, Any],
) -> Row:
    """One row of the report.

    Args:
        needs: What each attack needs to know, by its name.
        guaranteed: What :func:`guarantees` gives.

    Guarantees:

    - the scored batches have no part in choosing the worst attack.
    """
    blind = scores.scored[BLIND]
    repeats, batches = blind.shape
    resampler = Resampler.draw(seeds=repeats, batches=batches, seed=seed)
    base = float(blind.mean())
    attacks = {
        name: AttackScore(
            float(found.mean()), resampler.rate_ci(found), advantage(float(found.mean()), base)
        )
        for name, found in scores.scored.items()
    }
    worst = worst_attack(scores.calibration)
    accuracies = np.array(cost.accuracies)
    return Row(
        defense=defense.name,
        composition=cell.composition,
        stage=cell.stage,
        batch_size=cell.batch_size,
        rounds=cell.rounds,
        accuracy=float(accuracies.mean()),
        accuracy_ci=t_interval(accuracies),
        accuracy_seeds=cost.accuracies,
        diverged=cost.diverged,
        bytes_per_update=cost.bytes_per_update,
        dense_bytes=cost.dense_bytes,
        step_overhead=cost.step_overhead,
        attacks=attacks,
        skipped=scores.skipped,
        worst_attack=worst,
        worst_asr=attacks[worst].asr,
        worst_ci=attacks[worst].ci,
        blind_asr=base,
        advantage=attacks[worst].advantage,
        advantage_ci=resampler.advantage_ci(scores.scored[worst], blind),
        knowledge=worst_by_knowledge(scores.calibration, attacks, needs),
        **guaranteed,
    )
