"""Federated averaging without a framework: UpdateGuard on every client, recorded as it goes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradguard import Defense, LocalTraining, UpdateGuard, apply_update
from gradguard.evaluation import AttackSpec, ModelSpec, Study, TrainingSpec
from gradguard.evaluation.batches import Batch, draw_batches
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.updates.recording import Recorder, record_labels

TRAINING = LocalTraining(epochs=1, learning_rate=0.05)
ATTACK = AttackSpec(
    batch_sizes=(8,),
    compositions=("skewed",),
    stages=("init",),
    trials=60,
    calibration=50,
    seeds=1,
    simulated=120,
    attackers=("LLG", "TemplateRegression(head)", "NegativeColumns"),
)


def study_of(*defenses: Defense, client: LocalTraining | None = TRAINING, **attack: Any) -> Study:
    """A study of digits by FedAvg clients of one local step."""
    return Study(
        defenses,
        model=ModelSpec(name="mlp"),
        training=TrainingSpec(steps=4, seeds=1),
        attack=replace(ATTACK, **attack),
        client=client,
    )


def federate(
    folder: Path,
    bench: Bench,
    defense: Defense,
    *,
    clients: int,
    rounds: int,
    same_data: bool = False,
    labelled: bool = True,
    batch_size: int = 8,
    training: LocalTraining | None = None,
    seed: int = 5,
) -> None:
    """Play rounds of federated averaging on images that no simulation sees, and record them."""
    recorder, model = Recorder(folder), bench.fresh_model(0)
    guards = [UpdateGuard(defense.chain, model) for _ in range(clients)]
    for index, guard in enumerate(guards):
        guard.reset(seed + index)
    held = batches_of(bench, clients * (1 if same_data else rounds), size=batch_size, seed=seed)
    for number in range(1, rounds + 1):
        before = {n: t.clone() for n, t in model.state_dict().items()}
        recorder.begin_round(number, before)
        updates = []
        for index, guard in enumerate(guards):
            batch = held[index if same_data else (number - 1) * clients + index]
            after = _trained(model, batch, training or bench.study.client or TRAINING)
            updates.append(guard.protect(before, after))
            recorder.add(number, str(index), updates[-1], num_examples=batch_size)
            if labelled:
                record_labels(folder, number, str(index), batch.labels, classes=10)
        mean = {n: sum(u[n] for u in updates) / clients for n in before}
        model.load_state_dict(apply_update(before, mean))  # type: ignore[arg-type]


def bench_of(study: Study) -> Bench:
    return prepare(study)


def batches_of(bench: Bench, number: int, *, size: int = 8, seed: int = 5) -> list[Batch]:
    """What clients hold, in their order."""
    composition = bench.study.attack.compositions[0]
    return draw_batches(
        *(bench.data, bench.parts.scored),
        composition=composition,
        batch_size=size,
        number=number,
        seed=seed,
    )


def _trained(model: nn.Module, batch: Batch, how: LocalTraining) -> dict[str, torch.Tensor]:
    """A plain local training loop, written anew: what is simulated must agree with it."""
    local = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(local.parameters(), lr=how.learning_rate)
    for _ in range(how.epochs):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(local(batch.inputs), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return local.state_dict()
