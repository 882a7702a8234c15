"""Ray as joblib's backend: one of its own on this machine, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from gradguard.evaluation.errors import UnusableInputError, one_line

SECONDS = 10
"""In which a cluster must answer."""
MISSING = "the backend 'ray' needs Ray; install it by pip install 'gradguard[ray]'"


@contextlib.contextmanager
def ray_cluster(jobs: int, address: str | None) -> Iterator[dict[str, Any]]:
    """Options for ``joblib.parallel_config``; a cluster that was started here is ended.

    Args:
        address: ``host:port`` of a running cluster, all of whose nodes must see the store's
            folder and have the same gradguard; ``None`` starts one on this machine.

    Raises:
        UnusableInputError: Ray is not installed, or there is no cluster at ``address``.
    """
    if address is not None and address.startswith("ray://"):
        raise UnusableInputError(
            f"--ray-address {address}: joblib does not work through Ray's client; give the "
            "cluster's own host:port, on a machine of the cluster"
        )
    if address is not None:
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _quiet():
            import ray
            from ray.util.joblib import register_ray
    except ImportError as error:
        raise UnusableInputError(MISSING) from error
    started = not ray.is_initialized()
    if started:
        _start(ray, jobs, address)
    try:
        with _quiet():
            register_ray()  # type: ignore[no-untyped-call]
            yield {"backend": "ray"}
    finally:
        if started:
            ray.shutdown()


def _reach(address: str) -> None:
    """Find out whether anything listens there: Ray itself would ask for minutes, and aloud."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UnusableInputError(f"--ray-address must be host:port, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise UnusableInputError(
            f"no Ray cluster at {address}: {one_line(error)}; start one with "
            "`ray start --head --port=PORT`, or leave out --ray-address"
        ) from error


def _start(ray: Any, jobs: int, address: str | None) -> None:
    # Workers import the model's factory by name, from where this process finds it.
    places = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # "local": without it Ray joins whatever cluster was last started on this machine.
    where = {"address": "local", "num_cpus": jobs} if address is None else {"address": address}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _quiet():
            ray.init(
                **where,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}},
            )
    except Exception as error:  # Ray raises many kinds, among them bare ones
        raise UnusableInputError(
            f"no Ray cluster at {address or 'this machine'}: {one_line(error)}"
        ) from error
    finally:
        if main:
            # Ray puts its own handler in the place of ours, which keeps the finished rows.
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray's own warnings, which are for its developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
