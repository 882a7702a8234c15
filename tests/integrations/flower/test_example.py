"""The example's runner, as far as it goes without an engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integrations.flower.engines import example_module


def test_an_unknown_mode_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert example_module("run").main(["top-k", "topk"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "unknown mode 'topk'; there are plain, top-k, top-k-dense, dp-sgd, client-dp"
    ]


def test_the_runner_knows_the_modes_that_the_app_has() -> None:
    guards = example_module("digits_app.client_app").GUARDS
    assert tuple(guards) == example_module("run").MODES


def test_the_table_is_found_among_log_lines() -> None:
    found = example_module("run").table_in
    assert found("INFO: a\n\ntop-k   round\n   1\n   2\nINFO: b\n", "top-k") == (
        "top-k   round\n   1\n   2\n"
    )
    assert found("INFO: top-k failed\n", "top-k") == ""


# Deaf to requests, and in a session of its own.
CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
time.sleep(600)
"""


def test_a_process_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    engine = example_module("engine")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=output)
    deadline = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = engine.descendants(process.pid)
    assert len(family) == 1
    engine.end(process, patience=0.5)
    deadline = time.monotonic() + 60
    while family & engine.running().keys() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not family & engine.running().keys()
