"""Where a report comes from: enough to run it again and to know how much lies behind it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gradguard.attacks.threat import Attack
from gradguard.evaluation.message_size import MASKED, MESSAGES
from gradguard.evaluation.message_size import METHOD as BYTES
from gradguard.evaluation.running.bench import Bench, per_seed
from gradguard.evaluation.running.keys import data_digest, sources_digest
from gradguard.evaluation.study import Study

METHOD = (
    "Stage init attacks fresh models; stage trained attacks the same models trained without a "
    "defence, shared by all defences. Accuracy is measured by training with the defence. "
    "Intervals are 95 %: bootstrap over model seeds and batches for attacks, t for accuracy. "
    "The worst attack is chosen on calibration batches and scored on others that share no image "
    "with them. Every figure is what these attackers achieve, a lower bound on what leaks."
)
ROUNDS = (
    "Over several rounds a client sends messages of one batch, at one model, and the server takes "
    "their mean."
)
COHORTS = (
    "Of a cohort the server sees the mean message, and one client's labels are asked for; the "
    "others' batches have the same composition. Accuracy is that of training on such means."
)
LOCAL_TRAINING = (
    "Clients train locally on the attacked batch and send the change of the model, without "
    "buffers; the attacked trained model itself was trained on gradients. Accuracy is that of a "
    "server that applies the change of one client after the other."
)
_PACKAGES = ("gradguard", "torch", "numpy", "scipy", "scikit-learn", "opacus")


def provenance(
    bench: Bench,
    attacked_accuracies: Sequence[float],
    *,
    command: Sequence[str],
    started: str,
    seconds: float,
) -> dict[str, Any]:
    """Versions, seed, command, sizes of the parts, numbers of batches, and time taken."""
    study, repeats = bench.study, bench.study.attacked_seeds
    return {
        "method": _method(study),
        "started": started,
        "wall_seconds": round(seconds, 1),
        "command": " ".join(command),
        "seed": study.seed,
        "versions": {"python": platform.python_version()} | _versions(),
        "sources": sources_digest(),
        "hardware": hardware(),
        "data": {
            "name": bench.data.name,
            "digest": data_digest(bench.data),
            "images": len(bench.data),
            "input_shape": list(bench.data.input_shape),
            "classes": bench.data.num_classes,
            "test": len(bench.parts.test),
            "client": len(bench.parts.client),
            "history": len(bench.parts.history),
            "calibration": len(bench.parts.calibration),
            "scored": len(bench.parts.scored),
            "auxiliary": len(bench.parts.auxiliary),
        },
        "models_attacked": repeats,
        "batches_per_row": {
            "scored": repeats * per_seed(study.attack.trials, repeats),
            "calibration": repeats * per_seed(study.attack.calibration, repeats),
            "simulated_per_seed": max(map(_simulated, bench.attacks.values()), default=0),
        },
        "messages_encoded": {"per_defense": MESSAGES, "compressor": "zlib"},
        "attacked_model_accuracy": list(attacked_accuracies),
    }


def _method(study: Study) -> str:
    said = [METHOD, BYTES]
    if max(study.attack.rounds) > 1:
        said.append(ROUNDS)
    if any(defense.cohort > 1 for defense in study.defenses):
        said += [COHORTS, MASKED]
    if study.client is not None:
        said.append(LOCAL_TRAINING)
    return " ".join(said)


def _simulated(attack: Attack) -> int:
    return int(getattr(attack, "simulated", 0))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a folder that is not installed
            found[package] = "unknown"
    return found


def hardware() -> dict[str, Any]:
    """What it ran on, as far as it bears on times; nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if _POSIX else 0
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


_POSIX = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
