"""The ``[search]`` section of a study file: what is searched, how long, and for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gradguard import Defense
from gradguard.evaluation.errors import UnusableInputError, unknown
from gradguard.evaluation.search.default_space import default_search
from gradguard.evaluation.search.recommend import Constraints
from gradguard.evaluation.search.space import Space, description

SECTION = "search"
NAMES = ("none", "undefended", "no defence at all")
"""What a reference without a defence may be called, the first that is free."""

MOST_TRIALS = 100_000


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a search is run.

    Args:
        trials: How many candidates are proposed, those of the study file aside.
        batch: How many are proposed at a time. All of a batch are evaluated before any is learned
            from.
        space: What is searched.
        constraints: What is asked of what is recommended.
    """

    trials: int = 40
    batch: int = 8
    space: Space
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        for name, value in (("trials", self.trials), ("batch", self.batch)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and 1 <= value <= MOST_TRIALS):
                raise UnusableInputError(
                    f"{name} of a search must be a whole number from 1 to {MOST_TRIALS:,}, "
                    f"got {value!r}"
                )

    @classmethod
    def from_dict(cls, table: object, **instead: Any) -> SearchSettings:
        """The settings that a ``[search]`` section describes.

        Args:
            table: The section; one without ``defense`` searches a space of its own.
            **instead: Values of keys that are used in place of the section's, unless ``None``.

        Raises:
            UnusableInputError: A key is unknown, and the nearest known one is named, or a value
                is out of range.
        """
        if not isinstance(table, Mapping):
            raise UnusableInputError(f"[{SECTION}] must be a table of keys and values")
        limits = [f.name for f in fields(Constraints)]
        known = ["trials", "batch", *limits, "defense"]
        for key in table:
            if key not in known:
                raise unknown(f"key in [{SECTION}]", key, known)
        chosen = {**table, **{key: value for key, value in instead.items() if value is not None}}
        sizes = {key: chosen[key] for key in ("trials", "batch") if key in chosen}
        return cls(
            **sizes,
            space=Space.from_list(chosen.get("defense", default_search()["defense"])),
            constraints=Constraints(**{key: chosen[key] for key in limits if key in chosen}),
        )


def references(tables: object) -> list[Any]:
    """The ``[[defense]]`` tables of a study, with one without any defence among them.

    It is what every candidate is compared with, so it is put first where the study has none.
    """
    if not isinstance(tables, list):
        return [tables]  # which a study refuses in its own words
    names = [table.get("name") for table in tables if isinstance(table, Mapping)]
    if any(isinstance(table, Mapping) and _undefended(table) for table in tables):
        return tables
    free = next((name for name in NAMES if name not in names), f"{NAMES[-1]} here")
    return [{"name": free, "transform": []}, *tables]


def is_bare(defense: Defense) -> bool:
    """Whether it is no defence at all."""
    return description(defense) == description(Defense("none", transform=[]))


def _undefended(table: Mapping[str, Any]) -> bool:
    try:
        return is_bare(Defense.from_dict(table))
    except (ValueError, TypeError, KeyError):
        return False  # a study says what is wrong with it
