"""The simulated client is the deployed one: message for message, with its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradguard import (
    AddGaussian,
    Defense,
    ErrorFeedback,
    KeepRandomK,
    KeepTopK,
    LocalTraining,
    Quantize,
    Sign,
)
from gradguard.attacks.threat import Client
from gradguard.evaluation.batches import Batch
from gradguard.evaluation.observed.scenes import Target, cohorts, pooled, single
from gradguard.evaluation.observed.simulated import Played, Simulation, remembers
from gradguard.evaluation.observed.traffic import read_traffic, seen
from gradguard.evaluation.running.bench import Bench
from tests.evaluation.observed.federation import batches_of, bench_of, federate, study_of

TOP = Defense("top-k", transform=KeepTopK(0.05))
OWING = Defense("owing", transform=ErrorFeedback(KeepTopK(0.02)))
NOISY = Defense("noise", transform=AddGaussian(0.1))
FOUR = LocalTraining(epochs=4, learning_rate=0.1)


def played(
    folder: Path, bench: Bench, defense: Defense, *, clients: int = 2, same_data: bool = True
) -> tuple[Simulation, list[Target]]:
    federate(folder, bench, defense, clients=clients, rounds=3, same_data=same_data)
    traffic = read_traffic(folder)
    memory = remembers(defense, bench.fresh_model(0))
    targets = single(traffic, remembers=memory)
    targets += pooled(traffic)[0] + cohorts(traffic, remembers=memory)[0]
    return Simulation(bench, defense, (), 3), targets


def recorded(target: Target, bench: Bench) -> dict[str, Tensor]:
    [message] = target.messages
    return seen(message, bench.fresh_model(0))[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    # Two ways to subtract, at numbers of about 0.1: to their last bits.
    return one.keys() == other.keys() and all(
        torch.allclose(part, other[name], rtol=1e-4, atol=1e-7) for name, part in one.items()
    )


@pytest.mark.parametrize("defense", [TOP, OWING, Defense("none", transform=[])])
@pytest.mark.parametrize("training", [None, FOUR])
def test_a_simulated_client_sends_what_the_recorded_one_sent(
    tmp_path: Path, defense: Defense, training: LocalTraining | None
) -> None:
    """Given its batch; in every round, with what error feedback owes from the rounds before."""
    study = study_of(defense) if training is None else study_of(defense, client=training)
    bench = bench_of(study)
    simulation, targets = played(tmp_path, bench, defense)
    held = batches_of(bench, 2)
    alone = [target for target in targets if target.scene.kind == "alone"]
    assert len(alone) == 6
    for target in alone:
        batch = held[int(target.messages[0].client)]
        client = simulation.client(target.scene, "noise", "auxiliary")
        assert same(client(batch.inputs, batch.labels), recorded(target, bench))
        other = held[1 - int(target.messages[0].client)]
        assert not same(client(other.inputs, other.labels), recorded(target, bench))


def test_pooled_messages_are_the_mean_over_the_models_that_were_sent(tmp_path: Path) -> None:
    bench = bench_of(study_of(OWING))
    simulation, targets = played(tmp_path, bench, OWING)
    held = batches_of(bench, 2)
    for target in (target for target in targets if target.scene.kind == "pooled"):
        batch = held[int(target.messages[0].client)]
        client = simulation.client(target.scene, "noise", "auxiliary")
        parts = [seen(message, bench.fresh_model(0))[0] for message in target.messages]
        expected = {n: sum(part[n] for part in parts) / 3 for n in parts[0]}
        assert same(client(batch.inputs, batch.labels), expected)  # type: ignore[arg-type]


def test_a_cohort_has_the_client_and_others_with_data_of_their_own(tmp_path: Path) -> None:
    bench = bench_of(study_of(TOP))
    simulation, targets = played(tmp_path, bench, TOP, clients=4)
    target = next(target for target in targets if target.scene.kind == "cohort")
    batch = batches_of(bench, 1)[0]
    client = simulation.client(target.scene, "noise", "auxiliary")
    assert isinstance(client, Played)
    own = client._seen(batch)
    number = 400
    means = torch.stack([client(batch.inputs, batch.labels)["head.bias"] for _ in range(number)])
    company = torch.stack([client._seen(client.bank.batch(i))["head.bias"] for i in range(256)])
    assert not torch.equal(means[0], means[1])
    # A quarter of it is its own, and the rest three others'.
    expected = (own["head.bias"] + 3 * company.mean(dim=0)) / 4
    spread = company.std(dim=0) * 3**0.5 / 4
    assert ((means.mean(dim=0) - expected).abs() <= 5 * spread / number**0.5 + 1e-7).all()
    assert torch.allclose(means.std(dim=0), spread, rtol=0.25, atol=1e-6)


@pytest.mark.parametrize("defense", [TOP, OWING, NOISY])
def test_company_that_is_kept_changes_no_message(tmp_path: Path, defense: Defense) -> None:
    bench = bench_of(study_of(defense))
    simulation, targets = played(tmp_path, bench, defense, clients=4)
    target = [target for target in targets if target.scene.kind == "cohort"][-1]
    batch = batches_of(bench, 1)[0]
    keeping, fresh = (simulation.client(target.scene, "noise", "auxiliary") for _ in range(2))
    assert isinstance(keeping, Played)
    assert isinstance(fresh, Played)
    assert keeping.repeats == (defense != NOISY)
    fresh = replace(fresh, repeats=False)
    for _ in range(60):
        one, other = (client(batch.inputs, batch.labels) for client in (keeping, fresh))
        assert all(torch.equal(part, other[name]) for name, part in one.items())
    assert bool(keeping._known) == (defense != NOISY)
    assert not fresh._known


def test_memory_is_of_other_batches_where_clients_hold_new_ones(tmp_path: Path) -> None:
    bench = bench_of(study_of(OWING))
    simulation, targets = played(tmp_path, bench, OWING, same_data=False)
    last = targets[5]
    assert last.messages[0].round == 3
    batch = batches_of(bench, 1)[0]
    client = simulation.client(last.scene, "noise", "auxiliary")
    one, other = (client(batch.inputs, batch.labels) for _ in range(2))
    assert not same(one, other)  # what was owed differs
    first = simulation.client(targets[0].scene, "noise", "auxiliary")
    assert same(first(batch.inputs, batch.labels), first(batch.inputs, batch.labels))


def test_withheld_parameters_are_zeros_in_simulations(tmp_path: Path) -> None:
    bench = bench_of(study_of(TOP))
    simulation, targets = played(tmp_path, bench, TOP)
    hiding = Simulation(bench, TOP, ("head.bias",), 3)
    batch = batches_of(bench, 1)[0]
    for made in (simulation, hiding):
        message = made.client(targets[0].scene, "noise", "auxiliary")(batch.inputs, batch.labels)
        assert bool(message["head.bias"].any()) == (made is simulation)


def test_streams_of_noise_are_independent(tmp_path: Path) -> None:
    bench = bench_of(study_of(NOISY))
    simulation, targets = played(tmp_path, bench, NOISY)
    batch = batches_of(bench, 1)[0]

    def sent(stream: str) -> dict[str, Tensor]:
        client: Client = simulation.client(targets[0].scene, stream, "auxiliary")
        return client(batch.inputs, batch.labels)

    assert same(sent("attacker"), sent("attacker"))
    assert not same(sent("attacker"), sent("victims"))


def test_only_memory_counts_as_memory() -> None:
    model = bench_of(study_of(TOP)).fresh_model(0)
    for transform in (Sign(), AddGaussian(0.1), KeepRandomK(0.1), Quantize(bits=4)):
        assert not remembers(Defense("d", transform=transform), model)
    assert remembers(OWING, model)


def test_calibration_images_are_none_of_the_attackers(tmp_path: Path) -> None:
    bench = bench_of(study_of(TOP))
    simulation, targets = played(tmp_path, bench, TOP)
    auxiliary = {image.numpy().tobytes() for image in bench.auxiliary()[0]}

    def images(batches: list[Batch]) -> set[bytes]:
        return {image.numpy().tobytes() for batch in batches for image in batch.inputs}

    assert not auxiliary & images(simulation.calibration(targets[0].scene))
