"""Whether two reports were made likewise: what differs makes their comparison unfair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from gradguard.evaluation.decisions.judgeable import CONDITIONS
from gradguard.evaluation.report import Report
from gradguard.evaluation.specs import AttackSpec, DataSpec, ModelSpec, TrainingSpec

_ABSENT = "not set"
_DEFAULTS = {
    "data": asdict(DataSpec(name="digits")),
    "model": asdict(ModelSpec(name="cnn-relu")),
    "training": asdict(TrainingSpec()),
    "attack": asdict(AttackSpec()),
}
"""What a study does where it says nothing; one that says so is no other study."""
_PROVENANCE = ("versions", "data")


def unfairness(before: Report, after: Report) -> list[str]:
    """Differences of study, seed, data and versions, one sentence each.

    >>> a, b = (Report({"seed": 0, "attack": {"trials": n}, "defense": []}, ()) for n in (60, 90))
    >>> unfairness(a, b)
    ['attack.trials differs: 60 and 90']
    """
    pairs = [(_settings(before.study), _settings(after.study))]
    for name in _PROVENANCE:
        pairs.append(
            (
                dict(_flat(name, before.provenance.get(name, {}))),
                dict(_flat(name, after.provenance.get(name, {}))),
            )
        )
    return [
        f"{key} differs: {_shown(first, key)} and {_shown(second, key)}"
        for first, second in pairs
        for key in dict.fromkeys([*first, *second])
        if first.get(key, _ABSENT) != second.get(key, _ABSENT)
    ]


def different_definitions(before: Report, after: Report) -> list[str]:
    """Defences that have one name in both reports and are not the same."""
    first, second = _definitions(before), _definitions(after)
    return [
        f"{name!r} is not defined alike in both"
        for name in first
        if name in second and first[name] != second[name]
    ]


def _settings(study: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        name: values
        for key, value in (_DEFAULTS | dict(study)).items()
        if key != "defense"
        for name, values in _flat(key, _completed(key, value))
    }
    # As many models are attacked as are trained where a study says nothing else.
    settings["attack.seeds"] = settings.get("attack.seeds") or settings.get("training.seeds")
    # What is matched row by row: more rows make no other row unfair.
    matched = [f"attack.{name}" for name in CONDITIONS]
    return {name: value for name, value in settings.items() if name not in matched}


def _completed(section: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or section not in _DEFAULTS:
        return value
    named = value.get("path") or value.get("factory")  # then the built-in name has no say
    return _DEFAULTS[section] | ({"name": None} if named else {}) | dict(value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = " ".join(str(values.get(key, _ABSENT)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _definitions(report: Report) -> dict[str, Any]:
    tables = report.study.get("defense")
    if not isinstance(tables, list):
        return {}
    return {str(t.get("name")): t for t in tables if isinstance(t, Mapping)}
