"""`flwr run` on Ray: three rounds, actors that share clients, and clients that misbehave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import gradguard
from gradguard import AddGaussian, Defense, ErrorFeedback, KeepTopK
from gradguard.integrations.update_settings import seed_of
from tests.integrations.flower.engines import (
    EXAMPLE,
    HOSTILE,
    PlainLoop,
    Watched,
    check_epsilons,
    example_module,
    rows_of,
    watched,
)
from tests.integrations.flower.hostile_app.hostile import MISBEHAVIOUR, examples, misbehaviour

pytestmark = pytest.mark.slow
CLIENTS = 4 + len(MISBEHAVIOUR)
SEED = 7
NOISED = Defense("noised top-k", transform=(AddGaussian(0.01), ErrorFeedback(KeepTopK(0.1))))


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """A SuperLink with Flower's simulation engine."""
    with example_module("engine").superlink("--simulation") as link:
        yield link


@pytest.fixture(scope="module")
def run(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Four honest clients and the others."""
    folder = tmp_path_factory.mktemp("run")
    config = {"folder": str(folder), "wait_for": CLIENTS, "seed": SEED}
    config["gradguard_defense"] = NOISED.to_json()
    return watched(folder, engine.run(HOSTILE, clients=CLIENTS, **config))


@pytest.fixture(scope="module")
def tables(engine: Any) -> dict[str, list[list[str]]]:
    """The rows of the example's tables, by mode."""
    found = {}
    for mode in ("top-k", "top-k-dense", "dp-sgd"):
        output = engine.run(EXAMPLE, clients=4, mode=mode, num_server_rounds=3)
        found[mode] = rows_of(output, mode)
    return found


def _plain_loop() -> PlainLoop:
    seeds = [seed_of(SEED, str(partition)) for partition in range(CLIENTS)]
    return PlainLoop(NOISED, seeds)


def _honest(number: int) -> list[int]:
    return [p for p in range(CLIENTS) if not misbehaviour(p, number)]


def test_updates_are_bitwise_those_of_a_plain_loop_in_every_round(run: Watched) -> None:
    loop = _plain_loop()
    for number, seen in enumerate(run.recording.rounds, start=1):
        loop.model = seen.model()  # Flower's average may be rounded otherwise in the last bit
        expected = loop.round(_honest(number))
        sent = {m.num_examples: m.update() for m in seen.messages}
        for partition, update in expected.items():
            for name, values in update.items():
                assert torch.equal(sent[examples(partition)][name], values), (number, name)


def test_who_crashes_sends_nan_cuts_or_replays_costs_only_themselves(run: Watched) -> None:
    loop = _plain_loop()
    for number in (1, 2, 3):
        loop.round(_honest(number))
    for name, values in run.model().items():
        assert torch.allclose(values, loop.model[name], rtol=0, atol=1e-6), name
    assert run.metric("gradguard.replies.refused") == [0, 5, 4]


def test_what_error_feedback_owes_is_carried_from_round_to_round(run: Watched) -> None:
    for partition in _honest(2):
        first, second, third = run.of(partition)
        assert first["residual before"] == 0
        assert first["residual after"] > 0
        assert second["residual before"] == first["residual after"]
        assert third["residual before"] == second["residual after"]


def test_a_refused_round_leaves_the_memory_as_it_was(run: Watched) -> None:
    nan = next(p for p, what in MISBEHAVIOUR.items() if what == "nan")
    first, second, third = run.of(nan)
    assert second["residual after"] == third["residual after"] == first["residual after"]


def test_clients_share_actors(run: Watched) -> None:
    """So that memory anywhere but in the context would have been mixed up."""
    clients: dict[int, set[int]] = {}
    for message in run.messages:
        clients.setdefault(message["pid"], set()).add(message["partition"])
    assert any(len(partitions) > 1 for partitions in clients.values())


def test_the_gradguard_in_the_engine_is_the_one_that_is_tested(run: Watched) -> None:
    assert {m["gradguard"] for m in run.messages} == {gradguard.__file__}
    assert run.server["gradguard"] == gradguard.__file__


def test_the_wire_changes_bytes_and_no_accuracy(tables: dict[str, list[list[str]]]) -> None:
    encoded, dense = tables["top-k"], tables["top-k-dense"]
    assert [row[:2] for row in encoded] == [row[:2] for row in dense]
    assert float(encoded[-1][1]) > 0.8
    for small, large in zip(encoded, dense, strict=True):
        assert 13 * _bytes(small) <= _bytes(large)


def _bytes(row: list[str]) -> float:
    return float(row[2].replace(",", ""))


def test_epsilon_is_that_of_all_rounds_so_far(tables: dict[str, list[list[str]]]) -> None:
    # 359 or 360 examples in batches of 32 are 12 steps, and there are two epochs.
    check_epsilons(tables["dp-sgd"], sample_rate=1 / 12, releases=24)


def test_nothing_of_an_engine_is_left_that_was_interrupted() -> None:
    module = example_module("engine")
    before = module.descendants(os.getpid())
    try:
        with module.superlink("--simulation") as link:
            begun = module.descendants(os.getpid()) - before
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert len(begun) > 1  # the SuperLink has started others
    assert not begun & module.running().keys()
    assert not link.folder.exists()
