"""NVFlare's own simulator, with a new process for every task: what reaches the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from gradguard import Defense, ErrorFeedback, KeepTopK, Quantize, UpdateGuard, chain
from gradguard.integrations.nvflare import site_seed
from tests.integrations.nvflare_site import BROKEN, RECORDS, Digits

ROOT = Path(__file__).parents[2]
SITES, ROUNDS, SEED = ("site-1", "site-2"), 3, 7
DEFENSE = Defense("top-k, 4 bits", transform=ErrorFeedback(chain(KeepTopK(0.1), Quantize(4))))
CODE = "tests.integrations.nvflare_site."


@pytest.mark.slow
def test_the_server_gets_the_plain_loops_updates_and_nothing_of_a_round_that_is_blocked(
    tmp_path: Path,
) -> None:
    records = simulated(tmp_path)
    for site in SITES:
        guard = UpdateGuard(DEFENSE.chain, Digits())
        guard.reset(site_seed(SEED, site))
        number = 0
        for now in range(ROUNDS):
            raw = arrays(records / f"raw-{site}-{now}.npz")
            sent, got = facts(records, "sent", site, now), facts(records, "decoded", site, now)
            if (site, now) == BROKEN:
                assert sent["code"] == got["code"] == "TASK_RESULT_FILTER_ERROR"
                assert sent["content"] == []
                continue
            before = {name: torch.zeros_like(tensor) for name, tensor in raw.items()}
            expected = guard.protect(before, raw)
            received = arrays(records / f"decoded-{site}-{now}.npz")
            assert_bitwise(received, expected)
            # The bytes were all that was sent.
            assert sent["kind"] == "APP_DEFINED"
            assert sent["bytes"] == sent["meta"]["gradguard.bytes.sent"]
            assert sent["bytes"] < sent["meta"]["gradguard.bytes.dense"]
            assert got["kind"] == "WEIGHT_DIFF"
            assert not torch.equal(received["body.0.weight"], raw["body.0.weight"])
            number += 1
        assert number == (2 if site == BROKEN[0] else 3)
    # Or else the residuals might have lived in a filter.
    processes = [facts(records, "sent", "site-1", now)["meta"]["process"] for now in range(ROUNDS)]
    assert len(set(processes)) == ROUNDS


def simulated(folder: Path) -> Path:
    """The folder of records of a simulation, whose processes have ended."""
    workspace, records, home = folder / "workspace", folder / "records", folder / "home"
    for made in (workspace / "local", records, home):
        made.mkdir(parents=True)
    # What a job may name. The simulator reads privacy.json, but its sites apply nothing of it.
    packages = ["nvflare.app_common.workflows.", "nvflare.app_opt.pt.", "gradguard.", CODE]
    resources = {"format_version": 2, "class_allow_list": packages}
    write(workspace / "local" / "resources.json", resources)
    write_job(folder / "job")
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
        process.wait(timeout=240)
    finally:
        end(process, str(workspace))
    assert process.returncode == 0, (folder / "log.txt").read_text()[-4000:]
    return records


def recorder(place: str) -> dict[str, Any]:
    return {"path": f"{CODE}Recorder", "args": {"place": place}}


def write_job(folder: Path) -> None:
    fedavg = {"num_clients": 2, "num_rounds": ROUNDS, "ignore_result_error": True}
    persistor = "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor"
    decoder = {"path": "gradguard.integrations.nvflare.DecodingFilter"}
    server = {
        "format_version": 2,
        "workflows": [
            {
                "id": "fedavg",
                "path": "nvflare.app_common.workflows.fedavg.FedAvg",
                "args": fedavg,
            }
        ],
        "components": [
            {"id": "persistor", "path": persistor, "args": {"model": {"path": f"{CODE}Digits"}}}
        ],
        "task_result_filters": [
            {"tasks": ["train"], "filters": [recorder("sent"), decoder, recorder("decoded")]}
        ],
    }
    guard = {
        "path": "gradguard.integrations.nvflare.GuardFilter",
        "args": {"defense": DEFENSE.to_json(), "wire": True, "simulation_seed": SEED},
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": {"path": f"{CODE}DigitsTrainer"}}],
        "components": [],
        "task_result_filters": [{"tasks": ["train"], "filters": [guard]}],
    }
    meta = {
        "name": "digits",
        "resource_spec": {},
        "min_clients": 2,
        "deploy_map": {"app": ["@ALL"]},
    }
    write(folder / "meta.json", meta)
    write(folder / "app" / "config" / "config_fed_server.json", server)
    write(folder / "app" / "config" / "config_fed_client.json", client)


def write(path: Path, table: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def end(process: subprocess.Popen[bytes], workspace: str) -> None:
    """End the simulator, and the workers that it puts into sessions of their own."""
    process.kill()
    process.wait()
    ours = [p for p in psutil.process_iter(["cmdline"]) if names(p, workspace)]
    for one in ours:
        one.kill()
    psutil.wait_procs(ours, timeout=10)


def names(process: psutil.Process, workspace: str) -> bool:
    return any(workspace in argument for argument in process.info["cmdline"] or [])


def facts(records: Path, where: str, site: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((records / f"{where}-{site}-{number}.json").read_text())
    return found


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as held:
        return {name: torch.from_numpy(np.array(held[name])) for name in held.files}


def assert_bitwise(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name
