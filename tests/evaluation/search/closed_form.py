"""A search without an evaluation: what defences cost and hide in closed form.

``python -m tests.evaluation.search.closed_form JOURNAL TRIALS`` runs it, slowly enough to be
killed, and prints the names of all candidates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gradguard import Defense, KeepTopK
from gradguard.evaluation.search.journal import Journal
from gradguard.evaluation.search.objectives import Candidate
from gradguard.evaluation.search.settings import SearchSettings
from gradguard.evaluation.search.space import Space
from gradguard.evaluation.search.trials import Measure, run_trials

RATIO = {"low": 0.001, "high": 1.0, "log": True}
Z = {"low": 0.25, "high": 8.0, "log": True}
SPACE = Space.from_list(
    [
        {"name": "top-k {ratio}", "transform": [{"KeepTopK": {"ratio": RATIO}}]},
        {"name": "z {noise_multiplier}", "dp": {"noise_multiplier": Z, "max_grad_norm": 1.0}},
        {
            "name": "z {noise_multiplier}, top-k {ratio}",
            "dp": {"noise_multiplier": Z, "max_grad_norm": 1.0},
            "transform": [{"KeepTopK": {"ratio": RATIO}}],
        },
    ]
)
NONE = Defense("none", transform=[])


def settings(trials: int, batch: int = 4) -> SearchSettings:
    return SearchSettings(trials=trials, batch=batch, space=SPACE)


def found(defense: Defense) -> Candidate:
    """Noise hides and costs accuracy, sparsity saves bytes and hides little."""
    noise = 0.0 if defense.dp is None else defense.dp.noise_multiplier
    kept = next((t.ratio for t in defense.chain.links if isinstance(t, KeepTopK)), 1.0)
    if noise > 7:
        return Candidate(name=defense.name, failed="training with it diverges")
    read = 0.97 / (1 + noise**2) * (0.85 + 0.15 * kept**0.3)
    accuracy = max(0.1, 0.97 - 0.05 * noise - 0.02 * kept**-0.3)
    return Candidate(
        name=defense.name,
        advantage=read,
        advantage_most=read + 0.03,
        accuracy=accuracy,
        accuracy_least=accuracy - 0.02,
        bytes_per_update=1e5 * min(1.0, 1.6 * kept),
        step_overhead=1.0 + 2 * (noise > 0),
    )


def measure(defenses: Sequence[Defense]) -> list[Candidate]:
    return [found(defense) for defense in defenses]


def slowly(defenses: Sequence[Defense]) -> list[Candidate]:
    time.sleep(0.1)
    return measure(defenses)


def run(path: Path, trials: int, *, how: Measure = measure, seed: int = 0) -> list[str]:
    """The names of all candidates of a search that goes on with the journal."""
    chosen = settings(trials)
    with Journal(path, space=SPACE, settings={"seed": seed}) as journal:
        made = run_trials(chosen, [NONE], measure=how, journal=journal, seed=seed)
    return [defense.name for defense in made]


if __name__ == "__main__":
    print("started", flush=True)
    print("\n".join(run(Path(sys.argv[1]), int(sys.argv[2]), how=slowly)))
