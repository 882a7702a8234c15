"""What a guarded NVFlare site keeps from round to round: one file in the job's folder on the site.

Not in the filter: the simulator, with fewer threads than sites, makes a new process for every
task. Two filters of one job share the file, and with it one ledger.

**The file holds what error feedback has held back**, which is as sensitive as the data: it is
readable by its owner only, and goes when the job's folder is deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from safetensors import SafetensorError, safe_open

FORMAT = "gradguard.nvflare.v1"


@dataclass(frozen=True)
class Memory:
    """A guard after its last message.

    Args:
        arrays: And ``text``: its state, as :meth:`gradguard.UpdateGuard.state_to_arrays` gives it.
        settings: Of which defence, see :meth:`UpdateSettings.described`.
        dtypes: Of the entries of the first update.
        sent: How many messages it has made in this job.
    """

    arrays: Mapping[str, np.ndarray]
    text: str
    settings: str
    dtypes: Mapping[str, str]
    sent: int


def place(fl_ctx: FLContext) -> Path:
    """The file of the site and job that ``fl_ctx`` belongs to.

    Raises:
        ValueError: It does not say.
    """
    job, site = fl_ctx.get_job_id(), fl_ctx.get_identity_name()
    if not job or not site:
        raise ValueError(
            "the context has no job or site, so that nothing can be remembered for the next round"
        )
    folder = Path(workspace_of(fl_ctx).get_run_dir(str(job)))
    return folder / "gradguard" / f"{site}.safetensors"


def workspace_of(fl_ctx: FLContext) -> Workspace:
    """Where the site keeps its files.

    Raises:
        ValueError: The context has none.
    """
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    if workspace is None and fl_ctx.get_engine() is not None:
        workspace = fl_ctx.get_workspace()
    if workspace is None:
        raise ValueError("the context has no workspace, so that nothing can be remembered")
    return workspace


def recall(path: Path) -> Memory | None:
    """What was kept, or ``None`` before the first message.

    Raises:
        ValueError: The file is damaged, or something else.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            facts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {facts['format']!r}")
        dtypes = dict(json.loads(facts["dtypes"]))
        return Memory(arrays, facts["state"], facts["settings"], dtypes, int(facts["sent"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not what this site remembers of the job ({type(error).__name__}: {error}); "
            "without it residuals and what was spent of the privacy budget are lost. Restore it, "
            "or start a new job with that in mind"
        ) from error


def check_memory(memory: Memory | None, path: Path, settings: str, *, known: int) -> None:
    """Raise unless a job can go on from ``memory``.

    Args:
        memory: Of :func:`recall`.
        path: Where it was.
        settings: Of the filter, now.
        known: How many messages this process has made.

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
            f"{path}: was deleted or is older than what this site has sent; without it residuals "
            "and what was spent of the privacy budget are lost. Start a new job"
        )


def remember(path: Path, memory: Memory) -> None:
    """Keep ``memory`` for the next round: all of it, or what the file held before."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = {
        "format": FORMAT,
        "state": memory.text,
        "settings": memory.settings,
        "dtypes": json.dumps(dict(memory.dtypes)),
        "sent": str(memory.sent),
    }
    content = safetensors.numpy.save(dict(memory.arrays), metadata=facts)
    write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Have ``path`` hold all of ``content``, for its owner only, or what it held before."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a ledger that a power cut takes back would understate
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
