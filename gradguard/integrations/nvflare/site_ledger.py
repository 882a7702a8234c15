"""One ledger for all jobs on a site's data: a budget that more jobs cannot stretch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gradguard.dp import ClientDP, PrivacyLedger
from gradguard.integrations.nvflare.site_files import alone, digest_of, write_whole


def check_name(name: object) -> None:
    """Raise unless ``name`` can be that of a file in any folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ValueError(f"ledger must be a name of letters, digits, - and _, got {name!r}")


def book(path: Path, dp: ClientDP, *, max_epsilon: float | None, at_least: int) -> PrivacyLedger:
    """Book one more update, before it is sent, and give the ledger of all of them.

    Guarantees:

    - a ledger that was lost, or replaced by an older one, raises: its lock beside it knows how
      many updates it had.

    Args:
        path: Of the file, and of no link to it; made if it is not there.
        dp: Of the update.
        max_epsilon: At the delta of ``dp``, for all jobs together.
        at_least: Updates that the ledger is known to have.

    Raises:
        PrivacyBudgetExhausted: It would cost too much; it was not booked.
        ValueError: The file is damaged, or lacks updates.
    """
    with alone(path.with_suffix(".lock")) as tally:
        at = None if max_epsilon is None else dp.delta
        ledger = PrivacyLedger(max_epsilon=max_epsilon, delta=at)
        if path.exists():
            ledger.load_state_dict(read_ledger(path).state_dict())
        if ledger.releases < (known := max(at_least, tally.count)):
            raise ValueError(
                f"{path}: has {ledger.releases} updates of at least {known}: it was lost, or is "
                "older. Restore it"
            )
        ledger.charge(dp.noise_multiplier, sample_rate=1.0)
        state = ledger.state_dict()
        write_whole(path, json.dumps({"digest": _digest(state), "ledger": state}).encode())
        tally.raise_to(ledger.releases)
    return ledger


def read_ledger(path: Path) -> PrivacyLedger:
    """The ledger in a file.

    Raises:
        ValueError: It is damaged, or none.
    """
    try:
        held = json.loads(path.read_text())
        if held["digest"] != _digest(held["ledger"]):
            raise ValueError("its digest is another's")
        return PrivacyLedger.from_json(json.dumps(held["ledger"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no ledger, or damaged ({error}). Restore it") from error


def _digest(state: object) -> str:
    return digest_of(json.dumps(state, sort_keys=True).encode())
