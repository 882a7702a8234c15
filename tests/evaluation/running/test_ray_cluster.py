"""Ray: a cluster that is there already, and what is refused before anybody waits for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gradguard.evaluation import Study, UnusableInputError, evaluate, read_report
from gradguard.evaluation.running.ray_cluster import MISSING, ray_cluster
from gradguard.evaluation.running.store import LOG
from tests.evaluation.examples import STUDY
from tests.evaluation.test_cli import GRADGUARD, write_study

ENVIRONMENT = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one machine, as ``ray start`` makes it."""
    pytest.importorskip("ray")
    port = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    # Short, for there are sockets in it; and not Ray's own, where it leaves a note for all others.
    folder = tempfile.mkdtemp(prefix="ray-")
    with subprocess.Popen(
        command,
        env=ENVIRONMENT | {"RAY_TMPDIR": folder},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and head.poll() is None:
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            # Its own session: whatever else of Ray runs on this machine is not touched.
            os.killpg(head.pid, signal.SIGTERM)
            head.wait(timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_that_is_there_gives_the_rows_of_one_process(
    address: str, tmp_path: Path
) -> None:
    study, out = write_study(tmp_path), tmp_path / "out"
    command = [GRADGUARD, "evaluate", str(study), "--out", str(out), "--jobs", "2", "--quiet"]
    for more in ([], ["--resume"]):
        done = subprocess.run(
            [*command, "--backend", "ray", "--ray-address", address, *more],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
            timeout=120,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = read_report(out / "report.json")
    expected = evaluate(Study.from_dict(STUDY))
    assert [replace(row, step_overhead=1.0) for row in found.rows] == [
        replace(row, step_overhead=1.0) for row in expected.rows
    ]
    lines = [json.loads(line) for line in (out / "cells" / LOG).read_text().splitlines()]
    computed = Counter(line["key"] for line in lines if not line.get("taken"))
    assert set(computed.values()) == {1}


@pytest.mark.parametrize("wrong", ["cluster", "cluster:", ":6379", "cluster:0", "cluster:65536"])
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(UnusableInputError, match="must be host:port"), ray_cluster(1, wrong):
        pass


def test_where_nothing_listens_there_is_no_cluster() -> None:
    with (
        pytest.raises(UnusableInputError, match=r"no Ray cluster at .*`ray start --head"),
        ray_cluster(1, f"127.0.0.1:{free_port()}"),
    ):
        pass


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnusableInputError) as caught, ray_cluster(1, None):
        pass
    assert str(caught.value) == MISSING
    assert "pip install 'gradguard[ray]'" in MISSING
