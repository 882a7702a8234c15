"""What the ranks of a process group tell each other before any of them averages anything.

A rank that raises on its own leaves the others waiting for it until a timeout. So every rank first
says how it fared, in four numbers, and then all go on or all raise.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist

from gradguard.core import State
from gradguard.finite import NonFiniteGradientError
from gradguard.randomness import RNG_KEY

READY, NON_FINITE, FAILED = range(3)


@dataclass(frozen=True)
class RankReport:
    """How one rank fared: numbers that may be public.

    Args:
        status: ``READY``, ``NON_FINITE`` or ``FAILED``.
        configuration: Fingerprint of what must be the same on all ranks.
        streams: Fingerprint of what must be different, random streams; 0 if there are none.
        length: Bytes of the rank's message, where messages are sent as bytes.
    """

    status: int
    configuration: int
    streams: int
    length: int = 0


def status_of(error: Exception | None) -> int:
    """What a rank reports about its transform."""
    if error is None:
        return READY
    return NON_FINITE if isinstance(error, NonFiniteGradientError) else FAILED


def exchanged(
    report: RankReport, *, group: dist.ProcessGroup | None, device: torch.device
) -> list[RankReport]:
    """The reports of all ranks, in their order; a collective operation."""
    mine = torch.tensor(astuple(report), dtype=torch.int64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [RankReport(*numbers.tolist()) for numbers in found]


def problem_in(reports: Sequence[RankReport]) -> str | None:
    """Why nothing may be averaged, in the same words on every rank; ``None`` if all is well.

    >>> problem_in([RankReport(READY, 1, 0), RankReport(NON_FINITE, 1, 0)])
    'rank 1 of 2 saw NaN or infinity in its gradient, so no rank sent anything. Skip this batch on \
all ranks, or lower the learning rate'
    """
    of = f"of {len(reports)}"
    if bad := [r for r, report in enumerate(reports) if report.status == NON_FINITE]:
        return (
            f"{_ranks(bad)} {of} saw NaN or infinity in its gradient, so no rank sent anything. "
            "Skip this batch on all ranks, or lower the learning rate"
        )
    if bad := [r for r, report in enumerate(reports) if report.status == FAILED]:
        return f"{_ranks(bad)} {of} failed, so no rank sent anything; the reason is shown there"
    if len({report.configuration for report in reports}) > 1:
        return (
            f"the {len(reports)} ranks disagree about the transform, the exchange, the loss scale "
            "or the parameters, so no rank sent anything; make every rank's hook alike"
        )
    shared: dict[int, list[int]] = defaultdict(list)
    for rank, report in enumerate(reports):
        shared[report.streams].append(rank)
    if twins := [ranks for streams, ranks in shared.items() if streams and len(ranks) > 1]:
        return (
            f"{_ranks(twins[0])} {of} have the same random streams, and noise that two clients "
            "share can be subtracted, so no rank sent anything. Create the hook in each process "
            "after it has started, load each rank's own state, or call reseed() on every rank"
        )
    return None


def overflow_in(reports: Sequence[RankReport]) -> bool:
    """Whether some gradient is not finite and nothing else is wrong: a step that AMP skips."""
    statuses = {report.status for report in reports}
    return NON_FINITE in statuses and FAILED not in statuses


def fingerprint(*parts: object) -> int:
    """63 bits of a one-way hash, never zero; published, they tell nothing about a secret part.

    >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
    True
    """
    hashed = hashlib.sha256(b"gradguard rank report")
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return (int.from_bytes(hashed.digest()[:8], "little") >> 1) or 1


def stream_fingerprint(state: State) -> int:
    """A fingerprint of all random streams in ``state``, or 0 if there are none."""
    streams = [*_streams(state)]
    return fingerprint(*streams) if streams else 0


def _streams(state: Any) -> Iterator[bytes]:
    for key, value in state.items():
        if key == RNG_KEY:
            yield value.cpu().numpy().tobytes()
        elif isinstance(value, dict):
            yield from _streams(value)


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
