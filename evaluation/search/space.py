"""What is searched: kinds of defence, each with parameters that have ranges.

A study file says it in a section that only ``gradguard search`` reads::

    [search]
    trials = 40
    max_advantage = 0.1

    [[search.defense]]
    name = "top-k {ratio}, {bits} bits"
    transform = [
        { KeepTopK = { ratio = { low = 1e-4, high = 0.1, log = true } } },
        { Quantize = { bits = { choices = [4, 8] } } },
    ]

    [[search.defense]]
    name = "DP-SGD z = {noise_multiplier:.2g}"
    dp = { noise_multiplier = { low = 0.5, high = 8.0, log = true }, max_grad_norm = 1.0 }
    transform = []

Each ``[[search.defense]]`` is a ``[[defense]]`` in which a table in place of a value is a
:class:`gradguard.evaluation.search.ranges.Range`. Several are alternatives.
"""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradguard import Defense
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.search.ranges import Range

Path = tuple[str | int, ...]
Places = tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """One candidate in a space: which kind of defence, and the place of each of its parameters."""

    kind: int
    places: Places


@dataclass(frozen=True)
class Kind:
    """One kind of defence, with a range where a parameter is searched.

    A parameter is called as its field is; a second one of that name has ``_2`` at the end.

    Args:
        table: As in a study file.

    >>> kind = Kind({"name": "noise {stddev}", "transform": [
    ...     {"AddGaussian": {"stddev": {"low": 0.01, "high": 1.0, "log": True}}}]})
    >>> kind.defense((0.0316,))
    Defense(name='noise 0.0316', transform=chain(AddGaussian(stddev=0.0316)), dp=None, cohort=1)
    """

    table: Mapping[str, Any]
    ranges: tuple[tuple[Path, Range], ...] = field(init=False)

    def __post_init__(self) -> None:
        name = self.table.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UnusableInputError(f"every [[search.defense]] needs a name, got {name!r}")
        found: list[tuple[Path, Range]] = []
        for path, table in _slots(self.table):
            label = str(path[-1])
            same = sum(path[-1] == other[-1] for other, _ in found)
            unique = f"{label}_{same + 1}" if same else label
            found.append((path, Range.from_dict(unique, table)))
        object.__setattr__(self, "ranges", tuple(found))
        self._check_template(name)
        self._try_ends()

    def defense(self, places: Places) -> Defense:
        """The candidate with these parameters; a parameter that the name leaves out is added."""
        plain: Any = copy.deepcopy(dict(self.table))
        values = {}
        for (path, parameter), place in zip(self.ranges, places, strict=True):
            values[parameter.name] = value = parameter.value(place)
            _set(plain, path, list(value) if isinstance(value, tuple) else value)
        plain["name"] = self._name(values)
        try:
            return Defense.from_dict(plain)
        except (ValueError, TypeError, KeyError) as error:
            text = one_line(error).removeprefix(f"defence {plain['name']!r}: ")
            raise UnusableInputError(f"[search] defence {plain['name']!r}: {text}") from error

    def _name(self, values: Mapping[str, Any]) -> str:
        template: str = self.table["name"]
        told = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        shown = {name: _Plain(v) if isinstance(v, float) else v for name, v in values.items()}
        rest = [f"{name} {shown[name]}" for name in values if name not in told]
        return ", ".join([template.format(**shown), *rest])

    def _check_template(self, name: str) -> None:
        known = [parameter.name for _, parameter in self.ranges]
        try:
            parsed = list(string.Formatter().parse(name))
        except ValueError as error:
            raise UnusableInputError(f"[search] name {name!r}: {one_line(error)}") from error
        for _, told, _, conversion in parsed:
            # Not only a typo: a field of format() may reach into any attribute.
            if told is not None and (told not in known or conversion):
                raise UnusableInputError(
                    f"[search] name {name!r}: {{{told}}} is no parameter with a range; "
                    f"{'there are ' + ', '.join(known) if known else 'there is none'}"
                )

    def _try_ends(self) -> None:
        first = [parameter.at(0.0) for _, parameter in self.ranges]
        for i, (_, parameter) in enumerate([*self.ranges] or [((), None)]):
            for share in _shares(parameter):
                places = [*first]
                if parameter is not None:
                    places[i] = parameter.at(share)
                try:
                    self.defense(tuple(places))
                except (ValueError, TypeError) as error:  # of a format that does not fit, too
                    if isinstance(error, UnusableInputError):
                        raise
                    raise UnusableInputError(
                        f"[search] name {self.table['name']!r}: {one_line(error)}"
                    ) from error


class _Plain(float):
    """A float that is shown without the ``.0`` of a whole number: ``z = 2``, not ``z = 2.0``."""

    def __format__(self, spec: str) -> str:
        return format(float(self), spec or ".12g")

    def __str__(self) -> str:
        return format(self)


def _shares(parameter: Range | None) -> list[float]:
    """Shares that reach both ends of a range, or each of the choices."""
    if parameter is None:
        return [0.0]
    if parameter.choices is None:
        return [0.0, 1.0 - 2**-53]
    count = len(parameter.choices)
    return [(i + 0.5) / count for i in range(count)]


@dataclass(frozen=True)
class Space:
    """Several kinds of defence to choose from; see this module for how a file writes it."""

    kinds: tuple[Kind, ...]

    @classmethod
    def from_list(cls, tables: object) -> Space:
        """The space that the ``[[search.defense]]`` tables describe.

        Raises:
            UnusableInputError: A name, key or value is unusable; the message names it.
        """
        good = isinstance(tables, list) and all(isinstance(t, Mapping) for t in tables)
        if not good or not tables:
            raise UnusableInputError(
                "what is searched is written as [[search.defense]] tables, each with a name"
            )
        assert isinstance(tables, list)
        return cls(tuple(Kind(copy.deepcopy(dict(table))) for table in tables))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data that :meth:`from_list` reads back."""
        return [copy.deepcopy(dict(kind.table)) for kind in self.kinds]

    def defense(self, point: Point) -> Defense:
        """The candidate at a point."""
        return self.kinds[point.kind].defense(point.places)


def description(defense: Defense) -> str:
    """A defence as text without its name: the same for two that do the same.

    >>> from gradguard import Sign
    >>> description(Defense("a", transform=Sign())) == description(Defense("b", transform=[Sign()]))
    True
    """
    plain = json.loads(defense.to_json())
    return json.dumps({key: plain[key] for key in sorted(plain) if key != "name"}, sort_keys=True)


def _slots(table: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Where a table stands in place of a value."""
    if isinstance(cohort := table.get("cohort"), Mapping):
        yield ("cohort",), cohort
    if isinstance(dp := table.get("dp"), Mapping):
        yield from ((("dp", key), value) for key, value in dp.items() if isinstance(value, Mapping))
    yield from _transform_slots(table.get("transform", []), ("transform",))


def _transform_slots(plain: object, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if isinstance(plain, list):
        for i, part in enumerate(plain):
            yield from _transform_slots(part, (*path, i))
    elif isinstance(plain, Mapping):
        for name, values in plain.items():
            for key, value in values.items() if isinstance(values, Mapping) else ():
                if key == "transform":
                    yield from _transform_slots(value, (*path, name, key))
                elif isinstance(value, Mapping):
                    yield (*path, name, key), value


def _set(plain: Any, path: Sequence[str | int], value: Any) -> None:
    for key in path[:-1]:
        plain = plain[key]
    plain[path[-1]] = value
