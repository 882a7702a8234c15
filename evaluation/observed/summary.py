"""What stands beside the rows: how they were made, where they come from, what to beware of."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from gradguard import Defense
from gradguard.evaluation.observed.simulated import composition_of, remembers
from gradguard.evaluation.observed.traffic import Traffic, size_of
from gradguard.evaluation.provenance import hardware
from gradguard.evaluation.running.bench import Bench
from gradguard.updates.recording_layout import version

METHOD = (
    "Attackers are fitted on simulated clients: the study's code and auxiliary images, at the "
    "models that the server really sent. The worst attack, no blind guess, is chosen on other "
    "simulated messages and scored on the recorded ones, whose labels the audited clients "
    "recorded; another is shown in its place where it alone leaks, judged by an interval widened "
    "for the number of attacks. Intervals are "
    "95 %, by a bootstrap over messages about different labels, widened for few. Whether clients "
    "hold some of the auxiliary images is not known here. Every figure is what these attackers "
    "achieve, a lower bound on what leaks."
)


def notes_of(chosen: Defense, traffic: Traffic, bench: Bench) -> list[str]:
    """What else a reader has to know, in words."""
    notes = []
    if chosen.cohort > 1:
        notes.append(
            f"the defence rests on a server that sees only sums over {chosen.cohort} clients, and "
            "this one saw single messages: from it, the cohort hid nothing"
        )
    if composition_of(bench) is None:
        notes.append("the study names several compositions; attackers expect a mixture of all")
    sizes, planned = traffic.batch_sizes, bench.study.attack.batch_sizes
    if not set(sizes) <= set(planned):
        notes.append(
            f"{_listed(sizes)} examples are behind the recorded messages, where the study says "
            f"{_listed(planned)}: the recorded numbers are simulated"
        )
    told = sum(m.num_examples is not None and m.num_examples != size_of(m) for m in traffic.sent)
    if told:
        notes.append(
            f"{told} messages came with another number of examples than their recorded labels; "
            "attackers are told that of the labels"
        )
    if traffic.recording.stray_labels:
        notes.append(f"{traffic.recording.stray_labels} recorded labels belong to no message")
    if remembers(chosen, bench.fresh_model(0)):
        notes.append(
            "the defence remembers earlier rounds: simulated clients play those that were "
            "recorded, with " + _held(traffic)
        )
    return notes


def _held(traffic: Traffic) -> str:
    if not traffic.repeating():
        return "other batches, for labels differ"
    if not traffic.differing():
        return "the same batch"
    return "the same batch where a client's labels agree, and others where they differ"


def _listed(sizes: Sequence[int]) -> str:
    more = f" and {len(sizes) - 5} more numbers of" if len(sizes) > 5 else ""
    return ", ".join(str(size) for size in sizes[:5]) + more


def provenance_of(
    bench: Bench, traffic: Traffic, command: Sequence[str], started: str, start: float
) -> dict[str, Any]:
    """Versions, seed, command, time taken since ``start``."""
    return {
        "method": METHOD,
        "started": started,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "command": " ".join(command),
        "seed": bench.study.seed,
        "versions": {
            "python": platform.python_version(),
            "gradguard": version(),
            "torch": torch.__version__,
        },
        "hardware": hardware(),
        "calibration_messages": bench.study.attack.calibration,
        "clients_with_same_labels_every_round": len(traffic.repeating()),
    }
