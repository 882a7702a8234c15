"""A SuperLink of one's own: offline, on a free port, and gone afterwards with all it has started.

Flower's ``flwr run`` alone starts a SuperLink that goes on for ever, keeps its files in the user's
home, and installs an app's dependencies a second time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}

CONFIG = """[superlink]
default = "own"
[superlink.own]
address = "{}"
insecure = true
"""


@dataclass(frozen=True)
class SuperLink:
    """One that is running.

    Args:
        process: Its own, under which are all others but SuperNodes.
        address: Host and port.
        environment: For all processes that are to talk to it.
        folder: Holds its log, among other things.
    """

    process: subprocess.Popen[bytes]
    address: str
    environment: dict[str, str]
    folder: Path

    def run(self, app: Path, *, clients: int = 0, timeout: float = 600, **config: object) -> str:
        """What ``flwr run`` prints until the app has ended.

        Args:
            clients: How many to simulate; 0 where SuperNodes are connected.
            config: For the app's run config, in snake case.
        """
        command = ["flwr", "run", str(app), "--stream"]
        if config:
            command += ["-c", " ".join(f"{_kebab(k)}={_toml(v)}" for k, v in config.items())]
        if clients:
            # Otherwise Flower takes two processors for each, and many machines have no more.
            size = f"num-supernodes={clients} client-resources-num-cpus=1"
            command += ["--federation-config", size]
        log = self.folder / "run.log"
        with started(command, self.environment, log) as process:
            process.wait(timeout)
        return log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def superlink(*options: str) -> Iterator[SuperLink]:
    """A SuperLink with a folder of its own, ended when the block ends, however it does."""
    # A short path: Ray's sockets are in it, and their names may not be longer than 107 bytes.
    short = "/tmp" if os.path.isdir("/tmp") else None
    with TemporaryDirectory(prefix="flwr-", dir=short, ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        address = f"127.0.0.1:{port}"
        (folder / "config.toml").write_text(CONFIG.format(address))
        own = {"FLWR_HOME": name, "RAY_TMPDIR": name, "TMPDIR": name}
        # Flower finds the programs of its parts by PATH: let them be those of this Python.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        environment = {**os.environ, **QUIET, **own, "PATH": path}
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        log = folder / "superlink.log"
        with started([*command, *options], environment, log) as process:
            wait_until_healthy(address, process, log)
            yield SuperLink(process, address, environment, folder)


@contextmanager
def started(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended with all that it has started when the block ends, however it does."""
    program = os.path.join(sysconfig.get_path("scripts"), command[0])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]], env=environment, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], patience: float = 20) -> None:
    """Ask a process to end, then kill what is left of it and of all that it has started."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + patience
    while (left := family & running().keys()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants(pid: int) -> set[int]:
    """The ids of all processes that a process has started, and they in turn."""
    parents, found = running(), {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def running() -> dict[int, int]:
    """All processes that have not ended, by id, with their parents' ids."""
    if not os.path.isdir("/proc/self"):
        command = ["ps", "-eo", "pid=,ppid=,stat="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [tuple(line.split()) for line in listed.stdout.splitlines()]
    else:  # Linux, where containers often have no ps
        rows = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it has just ended
            rows.append((folder.name, parent, state))
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the SuperLink at ``address`` answers."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://{address}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the SuperLink did not start:\n{log.read_text(errors='replace')}")


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _toml(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower()
