"""What DP-SGD costs and leaves on MNIST, beside what is certified about it.

For each noise multiplier, with and without top-k 1 % after it: accuracy, the best attack's
advantage over all conditions, the per-record certificate of one release, and epsilon of the
training run. Then which noise makes the best attacker no better than a blind guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.mnist import mnist_path
from benchmarks.table import print_table
from gradguard.evaluation import Report, Row, Study, evaluate
from gradguard.evaluation.certificates.law import broken_certificates
from gradguard.evaluation.views.sentences import by_defense

SEEDS = 3
NOISE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TOP_K = {"KeepTopK": {"ratio": 0.01, "scope": "global"}}
SIZES = (8, 64)


def defenses() -> list[dict[str, Any]]:
    """Undefended, DP-SGD by its noise multiplier, and top-k after the four smaller ones."""
    found: list[dict[str, Any]] = [{"name": "none", "transform": []}]
    for z in NOISE:
        dp = {"noise_multiplier": z, "max_grad_norm": 1.0, "delta": 1e-5}
        found.append({"name": f"z = {z:g}", "dp": dp, "transform": []})
        if z <= 4:
            found.append({"name": f"z = {z:g}, top-k 1 %", "dp": dp, "transform": [TOP_K]})
    return found


def study() -> Study:
    """300 scored batches per cell over three models."""
    return Study.from_dict(
        {
            "seed": 0,
            "data": {"path": str(mnist_path()), "test_fraction": 0.1, "client_fraction": 0.6},
            "model": {"name": "cnn-relu"},
            "training": {"steps": 1000, "learning_rate": 0.01, "momentum": 0.9, "seeds": SEEDS},
            "attack": {
                "batch_sizes": list(SIZES),
                "compositions": ["iid", "skewed"],
                "trials": 300,
                "calibration": 150,
                "simulated": 300,
            },
            "defense": defenses(),
        }
    )


def main() -> bool:
    """Print the table; true if no attack exceeds a certificate."""
    report = evaluate(study(), jobs=2)
    lines = [_line(rows) for rows in by_defense(report).values()]
    print_table(
        f"MNIST, cnn-relu: {SEEDS} models, 300 scored batches per cell, delta = 1e-5",
        ["defence", "accuracy", *(f"advantage B={b}" for b in SIZES), "per record", "epsilon"],
        lines,
    )
    for size in SIZES:
        for alone in (True, False):
            print(blind_from(report, size, alone=alone))
    for warning in report.provenance["warnings"]:
        print(f"warning: {warning}")
    return not broken_certificates(report.rows)


def _line(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    certificate = next((r.certificate for r in rows if r.composition == "iid"), None)
    accuracy = f"{100 * first.accuracy:.0f} %"
    if first.accuracy_ci is not None:
        accuracy += " ({:.0f}-{:.0f})".format(*(100 * end for end in first.accuracy_ci))
    return [
        first.defense,
        accuracy,
        *(_advantage(worst(rows, size)) for size in SIZES),
        "none" if certificate is None else f"{100 * certificate['value']:.1f} %",
        "none" if first.epsilon is None else f"{first.epsilon:.2f}",
    ]


def worst(rows: Sequence[Row], size: int) -> Row:
    """The row of one batch size in which most is read."""
    return max((r for r in rows if r.batch_size == size), key=lambda r: r.advantage)


def _advantage(row: Row) -> str:
    low, high = row.advantage_ci
    return (
        f"{100 * row.advantage:.0f} % ({100 * low:.0f}-{100 * high:.0f}) "
        f"{row.stage}, {row.composition}"
    )


def blind_from(report: Report, size: int, *, alone: bool) -> str:
    """The least noise at which no row of this batch size is clearly above blind.

    Args:
        alone: Only DP-SGD with nothing after it.
    """
    what = "DP-SGD alone" if alone else "with or without top-k"
    for name, rows in by_defense(report).items():
        ours = [r for r in rows if r.batch_size == size]
        wanted = name != "none" and not (alone and "top-k" in name)
        if wanted and all(r.advantage_ci[0] <= 0 for r in ours):
            cost = 100 * (by_defense(report)["none"][0].accuracy - rows[0].accuracy)
            return (
                f"B = {size}, {what}: at {name} the best attack is no better than blind, within "
                f"its interval, in every condition; that costs {cost:.0f} points of accuracy"
            )
    return f"B = {size}, {what}: the best attack is better than blind at every noise tried"
