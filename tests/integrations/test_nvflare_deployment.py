"""A real NVFlare server and two sites on loopback, each site with a privacy.json of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integrations.nvflare_job import (
    PACKAGES,
    ROOT,
    SITES,
    Component,
    assert_as_in_a_plain_loop,
    end,
    guard,
    processes,
    server_filters,
    write,
    write_job,
)
from tests.integrations.nvflare_site import RECORDS

ADMIN = "admin@nvidia.com"
PORTS = ("8002", "8003")
"""Those that NVFlare writes into the kits."""


@pytest.mark.slow
def test_a_sites_own_privacy_json_defends_a_job_that_knows_nothing_of_it(tmp_path: Path) -> None:
    records = deployed(tmp_path)
    assert_as_in_a_plain_loop(records)
    assert len(set(processes(records, "site-1"))) == 1


def deployed(folder: Path) -> Path:
    """The folder of records of a job, whose server and sites have ended."""
    records, home, workspace = folder / "records", folder / "home", folder / "workspace"
    for made in (records, home):
        made.mkdir()
    environment = {
        **os.environ,
        RECORDS: str(records),
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "NVFLARE_POC_WORKSPACE": str(workspace),
        "OMP_NUM_THREADS": "1",
    }
    kits, port = provisioned(workspace, environment)
    factory = "tests.integrations.nvflare_site:Digits"
    for who in ("server", *SITES):
        own = server_filters() if who == "server" else [guard(model=factory)]
        configure(kits / who / "local", own)
    write_job(folder / "job", server=[], client=[])
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(start("server", kits / "server", [], environment))
        wait_for(port)
        for site in SITES:
            started.append(start("client", kits / site, [f"uid={site}"], environment))
        command = [sys.executable, "-m", "tests.integrations.nvflare_submit"]
        command += [ADMIN, str(kits / ADMIN), str(folder / "job"), "200"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        end(started, workspace)
    assert done.returncode == 0, done.stdout + done.stderr + logs(kits)
    return records


def provisioned(workspace: Path, environment: Mapping[str, str]) -> tuple[Path, int]:
    """Certificates and kits for a server, two sites and an administrator, on free ports."""
    command = [sys.executable, "-m", "nvflare.cli", "poc", "prepare", "-n", str(len(SITES))]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    [kits] = workspace.glob("*/prod_00")
    free = [free_port() for _ in PORTS]
    for path in kits.glob("*/startup/*.json"):
        text = path.read_text()
        for old, new in zip(PORTS, free, strict=True):
            text = text.replace(old, str(new))
        path.write_text(text)
    return kits, free[0]


def configure(local: Path, filters: list[Component]) -> None:
    scope = {"name": "guarded", "task_result_filters": filters}
    write(local / "privacy.json", {"scopes": [scope], "default_scope": "guarded"})
    given = local / "resources.json"
    resources = json.loads(
        (given if given.exists() else local / "resources.json.default").read_text()
    )
    # For what the job names; what privacy.json names is the site's own choice.
    resources["class_allow_list"] += [name for name in PACKAGES if name != "gradguard."]
    write(given, resources)


def start(
    kind: str, kit: Path, facts: list[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", f"nvflare.private.fed.app.{kind}.{kind}_train"]
    command += ["-m", str(kit), "-s", f"fed_{kind}.json"]
    command += ["--set", "secure_train=true", *facts, "org=nvidia", "config_folder=config"]
    with open(kit / "printed.txt", "wb") as log:
        return subprocess.Popen(
            command, cwd=kit, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def wait_for(port: int) -> None:
    for _ in range(240):
        with socket.socket() as found:
            if found.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"no server has come to listen on port {port}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def logs(kits: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in kits.glob("*/printed.txt"))
