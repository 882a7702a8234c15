"""A real SuperLink and two SuperNodes on loopback, where every message has a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import gradguard
from gradguard import Defense, ErrorFeedback, KeepTopK
from gradguard.dp import ClientDP
from tests.integrations.flower.engines import (
    EXAMPLE,
    HOSTILE,
    Watched,
    check_epsilons,
    example_module,
    rows_of,
    watched,
)

pytestmark = pytest.mark.slow
DEFENSE = Defense("top-k", transform=ErrorFeedback(KeepTopK(0.1)))


@pytest.fixture(scope="module")
def deployment() -> Iterator[Any]:
    """A SuperLink to which two nodes are connected, or are about to be."""
    engine = example_module("engine")
    with ExitStack() as stack:
        link = stack.enter_context(engine.superlink())
        for number in (0, 1):
            own = ["--port", str(engine.free_port())]
            own += ["--node-config", f"partition-id={number} num-partitions=2"]
            command = ["flower-supernode", "--insecure", "--superlink", link.address, *own]
            log = link.folder / f"node-{number}.log"
            stack.enter_context(engine.started(command, link.environment, log))
        yield link


@pytest.fixture(scope="module")
def run(deployment: Any, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two honest clients with client-level DP and error feedback."""
    folder = tmp_path_factory.mktemp("run")
    config = {"folder": str(folder), "seed": 0, "noise_multiplier": 1.0}
    output = deployment.run(HOSTILE, gradguard_defense=DEFENSE.to_json(), **config)
    return watched(folder, output)


def test_every_message_is_another_process(run: Watched) -> None:
    assert len(run.messages) == len({m["pid"] for m in run.messages}) == 6


def test_what_error_feedback_owes_outlives_processes(run: Watched) -> None:
    for partition in (0, 1):
        first, second, third = run.of(partition)
        assert first["residual before"] == 0
        assert first["residual after"] > 0
        assert second["residual before"] == first["residual after"]
        assert third["residual before"] == second["residual after"]


def test_epsilon_outlives_processes(run: Watched) -> None:
    assert run.metric("gradguard.replies.refused") == [0, 0, 0]
    assert run.metric("gradguard.releases") == [1, 2, 3]
    composed = [ClientDP(1.0, 1.0).epsilon(rounds) for rounds in (1, 2, 3)]
    assert run.metric("gradguard.epsilon") == pytest.approx(composed)


def test_the_gradguard_in_the_engine_is_the_one_that_is_tested(run: Watched) -> None:
    assert {m["gradguard"] for m in run.messages} == {gradguard.__file__}
    assert run.server["gradguard"] == gradguard.__file__


def test_the_example_runs_there_as_well(deployment: Any) -> None:
    rows = rows_of(deployment.run(EXAMPLE, mode="dp-sgd", num_server_rounds=3), "dp-sgd")
    # 718 or 719 examples in batches of 32 are 23 steps, and there are two epochs.
    check_epsilons(rows, sample_rate=1 / 23, releases=46)
