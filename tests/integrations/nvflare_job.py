"""The job that NVFlare's engines run in the tests, and what its server should have got."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from gradguard import Defense, ErrorFeedback, KeepTopK, Quantize, UpdateGuard, chain
from gradguard.integrations.update_settings import seed_of
from tests.integrations.nvflare_site import BROKEN, Digits

ROOT = Path(__file__).parents[2]
SITES, ROUNDS, SEED = ("site-1", "site-2"), 3, 7
DEFENSE = Defense("top-k, 4 bits", transform=ErrorFeedback(chain(KeepTopK(0.1), Quantize(4))))
CODE = "tests.integrations.nvflare_site."
PACKAGES = ["nvflare.app_common.workflows.", "nvflare.app_opt.pt.", "gradguard.", CODE]
"""What a site has to allow, so that a job may name it."""

Component = dict[str, Any]


def guard(**more: Any) -> Component:
    """The filter of a site."""
    args = {"defense": DEFENSE.to_json(), "wire": True, "simulation_seed": SEED, **more}
    return {"path": "gradguard.integrations.nvflare.GuardFilter", "args": args}


def server_filters() -> list[Component]:
    """Those of the server: what came is written down before it is decoded, and after."""
    sent, decoded = (
        {"path": f"{CODE}Recorder", "args": {"place": place}} for place in ("sent", "decoded")
    )
    return [sent, {"path": "gradguard.integrations.nvflare.DecodingFilter"}, decoded]


def write_job(folder: Path, *, server: Sequence[Component], client: Sequence[Component]) -> None:
    """Write a FedAvg job, with its filters."""
    fedavg = {"num_clients": 2, "num_rounds": ROUNDS, "ignore_result_error": True}
    controller = "nvflare.app_common.workflows.fedavg.FedAvg"
    persistor = "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor"
    model = {"model": {"path": f"{CODE}Digits"}}
    server_app = {
        "format_version": 2,
        "workflows": [{"id": "fedavg", "path": controller, "args": fedavg}],
        "components": [{"id": "persistor", "path": persistor, "args": model}],
        "task_result_filters": [{"tasks": ["train"], "filters": [*server]}] if server else [],
    }
    client_app = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": {"path": f"{CODE}DigitsTrainer"}}],
        "components": [],
        "task_result_filters": [{"tasks": ["train"], "filters": [*client]}] if client else [],
    }
    deploy = {"app": ["@ALL"]}
    meta = {"name": "digits", "resource_spec": {}, "min_clients": 2, "deploy_map": deploy}
    write(folder / "meta.json", meta)
    write(folder / "app" / "config" / "config_fed_server.json", server_app)
    write(folder / "app" / "config" / "config_fed_client.json", client_app)


def assert_as_in_a_plain_loop(records: Path) -> None:
    """Every message is the plain loop's, bitwise; of the one round that diverged there is none."""
    for site in SITES:
        plain = UpdateGuard(DEFENSE.chain, Digits())
        plain.reset(seed_of(SEED, site))
        for now in range(ROUNDS):
            raw = arrays(records / f"raw-{site}-{now}.npz")
            sent, got = facts(records, "sent", site, now), facts(records, "decoded", site, now)
            if (site, now) == BROKEN:
                assert sent["code"] == got["code"] == "TASK_RESULT_FILTER_ERROR"
                assert sent["content"] == []
                continue
            zeros = {name: torch.zeros_like(tensor) for name, tensor in raw.items()}
            received = arrays(records / f"decoded-{site}-{now}.npz")
            # Counters that the server has averaged are floats to it.
            received["rounds"] = received["rounds"].to(torch.int64)
            assert_bitwise(received, plain.protect(zeros, raw))
            # The bytes were all that was sent.
            assert (sent["kind"], got["kind"]) == ("APP_DEFINED", "WEIGHT_DIFF")
            assert sent["bytes"] == sent["meta"]["gradguard.bytes.sent"]
            assert sent["bytes"] < sent["meta"]["gradguard.bytes.dense"]
            assert not torch.equal(received["body.0.weight"], raw["body.0.weight"])


def processes(records: Path, site: str) -> list[int]:
    """Which process of a site has answered, for every round that was sent."""
    every = (facts(records, "sent", site, now) for now in range(ROUNDS))
    return [found["meta"]["process"] for found in every if found["code"] == "OK"]


def end(started: Sequence[subprocess.Popen[bytes]], workspace: Path) -> None:
    """End what was started, and the workers that it has put into sessions of their own."""
    for process in started:
        process.kill()
        process.wait()
    every = psutil.process_iter(["cmdline"])
    ours = [one for one in every if any(str(workspace) in a for a in one.info["cmdline"] or [])]
    for one in ours:
        one.kill()
    psutil.wait_procs(ours, timeout=10)


def write(path: Path, table: dict[str, Any]) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def facts(records: Path, where: str, site: str, number: int) -> dict[str, Any]:
    """What the server has written down of a result."""
    found: dict[str, Any] = json.loads((records / f"{where}-{site}-{number}.json").read_text())
    return found


def arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file, as tensors."""
    with np.load(path) as held:
        return {name: torch.from_numpy(np.array(held[name])) for name in held.files}


def assert_bitwise(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name
