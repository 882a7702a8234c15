"""NVFlare's own simulator, with a new process for every task: what reaches the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.nvflare_job import (
    PACKAGES,
    ROOT,
    ROUNDS,
    SITES,
    assert_as_in_a_plain_loop,
    end,
    guard,
    processes,
    server_filters,
    write,
    write_job,
)
from tests.integrations.nvflare_site import RECORDS


@pytest.mark.slow
def test_the_server_gets_the_plain_loops_updates_and_nothing_of_a_round_that_is_blocked(
    tmp_path: Path,
) -> None:
    records = simulated(tmp_path)
    assert_as_in_a_plain_loop(records)
    # Or else the residuals might have lived in a filter.
    assert len(set(processes(records, "site-1"))) == ROUNDS


def simulated(folder: Path) -> Path:
    """The folder of records of a simulation, whose processes have ended."""
    workspace, records, home = folder / "workspace", folder / "records", folder / "home"
    for made in (workspace, records, home):
        made.mkdir()
    resources = {"format_version": 2, "class_allow_list": PACKAGES}
    write(workspace / "local" / "resources.json", resources)
    # The filter is in the job: the simulator reads privacy.json, but its sites apply nothing of it.
    write_job(folder / "job", server=server_filters(), client=[guard()])
    environment = {
        **os.environ,
        RECORDS: str(records),
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    # One thread for two sites: NVFlare then makes a new process for every task.
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(folder / "job")]
    command += ["-w", str(workspace), "-n", str(len(SITES)), "-t", "1"]
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        code = process.wait(timeout=300)
    finally:
        end([process], workspace)
    assert code == 0, (folder / "log.txt").read_text()[-4000:]
    return records
