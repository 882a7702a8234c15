"""Rows of a report without what its defences cost, which would take the longest, and their laws."""

from __future__ import annotations

import torch

from gradguard import Defense
from gradguard.attacks import PUBLISHED
from gradguard.evaluation.attackers import attack_name
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.report import Row
from gradguard.evaluation.running.bench import Bench, Cell
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.running.rows import Cost, make_row


def one_thread() -> None:
    """For one of several processes: threads would wait for each other's cores.

    After everything is imported, since only libraries that are loaded by now are limited.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    threadpool_limits(1)


def attacked_row(bench: Bench, cell: Cell, defense: Defense) -> Row:
    """The row of a report for one cell and defence; its accuracy is that without the defence."""
    scores = attack_cell(bench, cell, defense, Silent())
    accuracies = tuple(bench.undefended_accuracies()) or (float("nan"),)
    return make_row(
        *(defense, cell, scores),
        Cost(accuracies, diverged=False, step_overhead=1.0, dense_bytes=0),
        seed=bench.seed("intervals", cell.stage, cell.composition, cell.batch_size),
        guaranteed={"epsilon": None, "delta": None, "certificate": None},
        needs={name: attack.needs for name, attack in bench.attacks.items()},
    )


def best_published(row: Row) -> tuple[str, float]:
    """Which attack of :data:`gradguard.attacks.PUBLISHED` reads most, and how much."""
    rates = {n: row.attacks[n].asr for n in map(attack_name, PUBLISHED) if n in row.attacks}
    best = max(rates, key=lambda name: rates[name])
    return best, rates[best]


def is_worst(row: Row) -> bool:
    """Whether the worst case is not below the best single attack's interval, nor below LLG."""
    best = max(row.attacks.values(), key=lambda score: score.asr)
    return row.worst_asr >= max(best.ci[0], row.attacks["LLG"].asr - 1e-9)
