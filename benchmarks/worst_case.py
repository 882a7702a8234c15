"""What still leaks on MNIST: the worst case over all attackers, beside LLG and a blind guess.

The first table is the untrained network, the second the same network after 1,000 steps of
training. Targets are lower bounds on leakage: an evaluator that reports less is too weak.
"""

from __future__ import annotations

from benchmarks.mnist import mnist_path
from benchmarks.table import print_table
from gradguard.evaluation import Report, Row, Study, evaluate

SEEDS = 3
DEFENSES = {
    "none": [],
    "top-k 0.1 %": [{"KeepTopK": {"ratio": 0.001, "scope": "global"}}],
    "sign": [{"Sign": {}}],
    "noise 0.1": [{"AddGaussian": {"stddev": 0.1}}],
}
# (stage, defence, batch size): the least worst-case success rate that is no understatement.
TARGETS = {
    ("init", "top-k 0.1 %", 8): 0.93,
    ("init", "top-k 0.1 %", 64): 0.90,
    ("init", "sign", 8): 0.90,
    ("init", "noise 0.1", 8): 0.88,
    ("trained", "none", 8): 0.86,
    ("trained", "none", 64): 0.80,
}
NEGATIVE_COLUMNS = {8: 0.81, 64: 0.71}


def study() -> Study:
    """The study behind both tables; 300 scored batches per cell over three models."""
    return Study.from_dict(
        {
            "seed": 0,
            # 2,880 images for the attacker and 2,592 of the clients' that trained the model.
            "data": {"path": str(mnist_path()), "test_fraction": 0.1, "client_fraction": 0.6},
            "model": {"name": "cnn-relu"},
            "training": {"steps": 1000, "learning_rate": 0.1, "momentum": 0.0, "seeds": SEEDS},
            "attack": {
                "batch_sizes": [8, 64],
                "compositions": ["skewed"],
                "trials": 300,
                "calibration": 150,
                "simulated": 1000,
            },
            "defense": [{"name": n, "transform": t} for n, t in DEFENSES.items()],
        }
    )


def main() -> bool:
    """Print both tables; true if every target is met."""
    report = evaluate(study(), jobs=2)
    met = True
    for stage in ("init", "trained"):
        rows = [_line(row) for row in report.rows if row.stage == stage]
        met &= all(line[-1] != "NO" for line in rows)
        print_table(
            f"MNIST, cnn-relu, skewed, stage {stage}: {SEEDS} models, 300 scored batches",
            ["defence", "B", "LLG", "blind", "worst case", "who", "at least", "met"],
            rows,
        )
    return met & _trained_details(report)


def _line(row: Row) -> list[str]:
    target = TARGETS.get((row.stage, row.defense, row.batch_size))
    low, high = row.worst_ci
    return [
        row.defense,
        str(row.batch_size),
        f"{row.attacks['LLG'].asr:.3f}",
        f"{row.blind_asr:.3f}",
        f"{row.worst_asr:.3f} [{low:.3f}, {high:.3f}]",
        row.worst_attack,
        "" if target is None else f"{target:.2f}",
        "" if target is None else ("yes" if row.worst_asr >= target else "NO"),
    ]


def _trained_details(report: Report) -> bool:
    """The training-free baseline, and signs against the undefended gradient they come from."""
    trained = {(r.defense, r.batch_size): r for r in report.rows if r.stage == "trained"}
    print(f"accuracy of the trained model: {trained['none', 8].accuracy:.3f} (about .96 expected)")
    met = True
    for size, expected in NEGATIVE_COLUMNS.items():
        score = trained["none", size].attacks["NegativeColumns"]
        found, (low, high) = score.asr, score.ci
        gap = trained["sign", size].worst_asr - trained["none", size].worst_asr
        met &= abs(found - expected) <= 0.03 and gap >= -0.02
        print(
            f"B = {size}: NegativeColumns {found:.3f} [{low:.3f}, {high:.3f}] "
            f"(expected {expected:.2f} ± .03); "
            f"sign minus undefended {gap:+.3f} (at least -.02)"
        )
    return met
