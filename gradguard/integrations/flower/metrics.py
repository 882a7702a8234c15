"""What replies say of themselves in numbers, and how the numbers of many clients become one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

PREFIX = "gradguard."
SENT, DENSE = PREFIX + "bytes.sent", PREFIX + "bytes.dense"
EPSILON, DELTA, RELEASES = PREFIX + "epsilon", PREFIX + "delta", PREFIX + "releases"
_WORST = (EPSILON, DELTA, RELEASES)


@dataclass(frozen=True)
class Privacy:
    """What a client's messages have cost so far, the one that says so included.

    Args:
        epsilon: At ``delta``, adding or removing one unit; infinite where the noise is known.
        unit: ``"client"`` or ``"example"``.
        releases: How many noised sums epsilon is of.
    """

    epsilon: float
    delta: float
    releases: int
    unit: str
    accountant: str


def metrics_of(sent: int, dense: int, privacy: Privacy | None) -> dict[str, int | float]:
    """The entries that a guarded reply adds to its MetricRecord."""
    found: dict[str, int | float] = {SENT: sent, DENSE: dense}
    if privacy is not None:
        values = (privacy.epsilon, privacy.delta, privacy.releases)
        found |= dict(zip(_WORST, values, strict=True))
    return found


def aggregate_metrics(records: list[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """Flower's weighted averages, but for gradguard's own: of epsilon the largest counts.

    For ``FedAvg(train_metrics_aggr_fn=aggregate_metrics)`` where clients send whole models; a
    ``DecodingStrategy`` does it by itself. Flower's default *averages* epsilons.
    """
    told = [dict(next(iter(record.metric_records.values()))) for record in records]
    found = aggregate_metricrecords(records, weighting_metric_name)
    for key in [key for key in found if key.startswith(PREFIX)]:
        del found[key]
    return MetricRecord({**found, **summary(told)})


def summary(told: Sequence[Mapping[str, object]]) -> dict[str, int | float]:
    """One value for each of gradguard's metrics: the mean of bytes, the worst of privacy.

    Guarantees:

    - epsilon is infinite if some clients state one and others do not: they have none.

    >>> summary([{"gradguard.epsilon": 1.0}, {"gradguard.epsilon": 3.0}])
    {'gradguard.epsilon': 3.0}
    """
    found: dict[str, int | float] = {}
    for key in (SENT, DENSE):
        if values := _numbers(told, key):
            found[key] = sum(values) / len(values)
    for key in _WORST:
        values = _numbers(told, key)
        if values:
            # NaN compares as nothing, so that max would pass over it.
            found[key] = math.inf if any(math.isnan(value) for value in values) else max(values)
        if key == EPSILON and 0 < len(values) < len(told):
            found[key] = math.inf
    return found


def _numbers(told: Iterable[Mapping[str, object]], key: str) -> list[int | float]:
    values = (entries.get(key) for entries in told)
    return [value for value in values if isinstance(value, int | float)]
