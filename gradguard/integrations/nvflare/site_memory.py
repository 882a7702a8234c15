"""What a guarded NVFlare site keeps from round to round: one file in the job's folder on the site.

Not in the filter: the simulator, with fewer threads than sites, makes a new process for every
task. Two filters of one job share the file, and with it one ledger.

**The file holds what error feedback has held back**, which is as sensitive as the data: it is
readable by its owner only, and goes when the job's folder is deleted. What stays, in the site's
``.gradguard``, is how many updates the job was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from safetensors import SafetensorError, safe_open

from gradguard.integrations.nvflare.site_files import (
    digest_of,
    kept_file,
    workspace_of,
    write_whole,
)

FORMAT = "gradguard.nvflare.v2"


@dataclass(frozen=True)
class Memory:
    """A guard after its last message.

    Args:
        arrays: And ``text``: its state, as :meth:`gradguard.UpdateGuard.state_to_arrays` gives it.
        settings: Of which defence, see :meth:`UpdateSettings.described`.
        dtypes: Of the entries of the first update.
        sent: How many messages it has made in this job.
        booked: How many updates the site's ledger of all jobs had then; 0 without one.
    """

    arrays: Mapping[str, np.ndarray]
    text: str
    settings: str
    dtypes: Mapping[str, str]
    sent: int
    booked: int


@dataclass(frozen=True)
class Place:
    """Where the memory of one site and job is.

    Args:
        path: The file.
        lock: Held while it is in use; knows how many messages there were.
        job: Whose, with ``site``.
    """

    path: Path
    lock: Path
    job: str
    site: str


def place(fl_ctx: FLContext) -> Place:
    """That of the site and job that ``fl_ctx`` belongs to.

    Raises:
        ValueError: It does not say.
    """
    job, site = str(fl_ctx.get_job_id() or ""), str(fl_ctx.get_identity_name() or "")
    if not job or not site:
        raise ValueError(
            "the context has no job or site, so that nothing can be remembered for the next round"
        )
    if Path(site).name != site:
        raise ValueError(f"expected a site's name that a file can have, got {site!r}")
    workspace = workspace_of(fl_ctx)
    path = Path(workspace.get_run_dir(job)) / "gradguard" / f"{site}.safetensors"
    return Place(path, kept_file(workspace, "jobs", job, f"{site}.lock"), job, site)


def recall(where: Place) -> Memory | None:
    """What was kept, or ``None`` before the first message.

    Raises:
        ValueError: The file is damaged, or something else.
    """
    if not where.path.exists():
        return None
    try:
        with safe_open(where.path, framework="np") as file:
            facts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {facts['format']!r}")
        if facts.pop("digest") != _digest(arrays, facts):
            raise ValueError("its digest is another's")
        if (facts["job"], facts["site"]) != (where.job, where.site):
            raise ValueError(f"it is of job {facts['job']!r} on {facts['site']!r}")
        dtypes = dict(json.loads(facts["dtypes"]))
        counts = int(facts["sent"]), int(facts["booked"])
        return Memory(arrays, facts["state"], facts["settings"], dtypes, *counts)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where.path}: not what this site remembers of the job ({type(error).__name__}: "
            f"{error}); without it residuals and what was spent of the privacy budget are lost. "
            "Restore it, or start a new job with that in mind"
        ) from error


def check_memory(memory: Memory | None, where: Place, settings: str, *, known: int) -> None:
    """Raise unless a job can go on from ``memory``.

    Args:
        memory: Of :func:`recall`.
        where: It was.
        settings: Of the filter, now.
        known: How many messages there were.

    Raises:
        ValueError: It is another defence's, or forgets messages.
    """
    if memory is not None and memory.settings != settings:
        raise ValueError(
            "this site has sent updates of this job under other settings: "
            f"{memory.settings}, now {settings}; keep one defence over a job"
        )
    if known > (0 if memory is None else memory.sent):
        raise ValueError(
            f"{where.path}: was deleted or is older than what this site has sent, or the job was "
            "deployed again; without it residuals and what was spent of the privacy budget are "
            "lost. Start a new job"
        )


def check_begins(now: object) -> None:
    """Raise unless ``now`` is the first round, in which a site has nothing to remember.

    Args:
        now: The round that a result says it is of, if any.
    """
    if type(now) is not int or now != 0:
        raise ValueError(
            f"this site remembers no round of the job, and the result says round {now!r}, not 0: "
            "the ledger may be lost. Say joins_late=true if the site has really sent nothing yet; "
            f"a result has its round in the header {AppConstants.CURRENT_ROUND!r}"
        )


def remember(where: Place, memory: Memory) -> None:
    """Keep ``memory`` for the next round: all of it, or what the file held before."""
    facts = {
        "format": FORMAT,
        "job": where.job,
        "site": where.site,
        "state": memory.text,
        "settings": memory.settings,
        "dtypes": json.dumps(dict(memory.dtypes)),
        "sent": str(memory.sent),
        "booked": str(memory.booked),
    }
    arrays = dict(memory.arrays)
    metadata = {**facts, "digest": _digest(arrays, facts)}
    write_whole(where.path, safetensors.numpy.save(arrays, metadata=metadata))


def _digest(arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> str:
    forms = [[name, array.dtype.str, array.shape] for name, array in sorted(arrays.items())]
    head = json.dumps([sorted(facts.items()), forms]).encode()
    return digest_of(head, *(np.ascontiguousarray(arrays[name]).data for name in sorted(arrays)))
