"""A report as a pandas table: one row per row, flat columns."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.report import Report, Row

if TYPE_CHECKING:
    import pandas as pd

_SHARED = ("defense", "stage", "composition", "batch_size", "rounds")
_PLAIN = ("accuracy", "diverged", "bytes_per_update", "dense_bytes", "step_overhead",
          "worst_attack", "worst_asr", "blind_asr", "advantage", "epsilon", "delta")  # fmt: skip
_INTERVALS = {
    "accuracy": "accuracy_ci",
    "worst_asr": "worst_ci",
    "advantage": "advantage_ci",
}


def to_frame(report: Report) -> pd.DataFrame:
    """See :meth:`gradguard.evaluation.Report.to_frame`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UnusableInputError(
            "to_frame needs pandas, which is not installed; pip install pandas"
        ) from error
    # A first table fixes the order of the columns, whatever a later row has that others lack.
    records = [_record(row) for row in report.rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    head = [name for name in names if ":" not in name]
    columns = [*head, *sorted((name for name in names if ":" in name), key=_kind)]
    frame = pd.DataFrame(records, columns=columns or [*_SHARED, *_PLAIN])
    frame.attrs["complete"] = report.complete
    frame.attrs["failures"] = [asdict(failure) for failure in report.failures]
    return frame


def _record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(row, name) for name in _SHARED}
    for name in _PLAIN:
        value = getattr(row, name)
        # None among floats would make a column of objects, in which epsilon cannot be compared.
        optional = name in ("bytes_per_update", "epsilon", "delta")
        record[name] = float("nan") if optional and value is None else value
        if name in _INTERVALS:
            low, high = getattr(row, _INTERVALS[name]) or (float("nan"), float("nan"))
            record |= {f"{name}_low": low, f"{name}_high": high}
    for name, score in row.attacks.items():
        record |= {f"asr:{name}": score.asr, f"asr_low:{name}": score.ci[0]}
        record |= {f"asr_high:{name}": score.ci[1], f"advantage:{name}": score.advantage}
    record |= {f"knowledge:{level}": found.asr for level, found in row.knowledge.items()}
    record |= {f"skipped:{name}": why for name, why in row.skipped.items()}
    if row.certificate is not None:
        record["certificate:label"] = row.certificate["value"]
        record["certificate:batch"] = row.certificate["multiset"]["value"]
    return record


_KINDS = ("asr", "asr_low", "asr_high", "advantage", "knowledge", "certificate", "skipped")


def _kind(name: str) -> int:
    return _KINDS.index(name.partition(":")[0])
