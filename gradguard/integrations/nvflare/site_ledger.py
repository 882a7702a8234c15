"""One ledger for all jobs on a site's data: a budget that more jobs cannot stretch.

A file in the site's workspace, next to the folders of its jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradguard.dp import ClientDP, PrivacyLedger
from gradguard.integrations.nvflare.site_memory import write_whole


def check_name(name: object) -> None:
    """Raise unless ``name`` can be that of a file in any folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ValueError(f"ledger must be a name of letters, digits, - and _, got {name!r}")


def book(path: Path, dp: ClientDP, *, max_epsilon: float | None, of_this_job: int) -> PrivacyLedger:
    """Book one more update, before it is sent, and give the ledger of all of them.

    Args:
        path: Of the file; made if it is not there.
        dp: Of the update.
        max_epsilon: At the delta of ``dp``, for all jobs together.
        of_this_job: Updates that the job has made, this one included.

    Raises:
        PrivacyBudgetExhausted: It would cost too much; it was not booked.
        ValueError: The file is damaged, or lacks updates of this job.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path.with_suffix(".lock")):
        at = None if max_epsilon is None else dp.delta
        ledger = PrivacyLedger(max_epsilon=max_epsilon, delta=at)
        if path.exists():
            ledger.load_state_dict(PrivacyLedger.from_json(path.read_text()).state_dict())
        if ledger.releases < of_this_job - 1:
            raise ValueError(
                f"{path}: has {ledger.releases} updates, and this job alone has made "
                f"{of_this_job - 1}: it was lost, or is older. Restore it"
            )
        ledger.charge(dp.noise_multiplier, sample_rate=1.0)
        write_whole(path, ledger.to_json().encode())
    return ledger


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that other processes of the site wait for; it ends with the process."""
    import fcntl  # POSIX only; without it this raises, and nothing is sent

    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
