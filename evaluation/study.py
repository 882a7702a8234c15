"""A study: what is evaluated, on what, how often. Reads the TOML that is written by hand."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from gradguard import Defense, LocalTraining
from gradguard.evaluation.errors import UnusableInputError, one_line, unknown
from gradguard.evaluation.specs import AttackSpec, DataSpec, ModelSpec, TrainingSpec, build

_SECTIONS = {"data": DataSpec, "model": ModelSpec, "training": TrainingSpec, "attack": AttackSpec}
_KEYS = ("seed", *_SECTIONS, "client", "defense")


@dataclass(frozen=True)
class Study:
    """Defences to compare, and under which conditions.

    Args:
        defenses: At least one, with different names.
        seed: Decides every draw of the study, noise of the simulated clients included. A
            deployed client draws its noise afresh.
        client: What FedAvg clients do before they send the change of the model; with ``None``,
            clients send one gradient. Not with DP-SGD, which is for one step.

    Raises:
        UnusableInputError: A value is out of range; the message names its key.

    >>> from gradguard import Defense
    >>> Study((Defense("none", transform=[]),)).training.seeds
    3
    """

    defenses: tuple[Defense, ...]
    seed: int = field(default=0, kw_only=True)
    data: DataSpec = field(default_factory=DataSpec, kw_only=True)
    model: ModelSpec = field(default_factory=ModelSpec, kw_only=True)
    training: TrainingSpec = field(default_factory=TrainingSpec, kw_only=True)
    attack: AttackSpec = field(default_factory=AttackSpec, kw_only=True)
    client: LocalTraining | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise UnusableInputError(
                f"seed must be a whole number of at least 0, got {self.seed!r}"
            )
        if not self.defenses:
            raise UnusableInputError("a study needs at least one [[defense]] with a name")
        names = [defense.name for defense in self.defenses]
        twice = sorted({name for name in names if names.count(name) > 1})
        if self.attacked_seeds > self.training.seeds:
            raise UnusableInputError(
                f"attack.seeds is {self.attack.seeds}, but training.seeds makes only "
                f"{self.training.seeds} models; raise the one or lower the other"
            )
        for name in names:
            if not name.isprintable():  # it would break a line of the table, or the plot's XML
                raise UnusableInputError(f"defence {name!r}: use printable characters in a name")
        private = [defense.name for defense in self.defenses if defense.dp is not None]
        if self.client is not None and private:
            raise UnusableInputError(
                f"defence {private[0]!r} has dp, whose noise and epsilon are for one step on "
                "clipped gradients, and [client] takes local steps of its own; leave out one of "
                "them"
            )
        if twice:
            raise UnusableInputError(f"two defences are called {twice[0]!r}; rename one of them")

    @property
    def attacked_seeds(self) -> int:
        """How many models are attacked in every cell."""
        return self.training.seeds if self.attack.seeds is None else self.attack.seeds

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path | None = None) -> Study:
        """A study from plain data.

        Args:
            folder: What a relative ``data.path`` is relative to; the working folder if not given.
        """
        for key in table:
            if key not in _KEYS:
                raise unknown("key in the study", key, _KEYS)
        sections: dict[str, Any] = {
            name: build(spec, name, table.get(name, {})) for name, spec in _SECTIONS.items()
        }
        data = sections["data"]
        if folder is not None and data.path is not None:
            sections["data"] = replace(data, path=str(folder / data.path))
        defenses = _defenses(table.get("defense", []))
        client = build(LocalTraining, "client", table["client"]) if "client" in table else None
        return cls(defenses, seed=table.get("seed", 0), client=client, **sections)

    @classmethod
    def from_toml(cls, path: Path) -> Study:
        """A study from a file; a relative ``data.path`` starts at the file's folder."""
        return cls.from_dict(read_toml(path), folder=path.parent)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back to an equal study.

        A defence with a transform of the user's own, which no file can name, is written as its
        ``repr``; that is for readers, and :meth:`from_dict` refuses it.
        """
        table: dict[str, Any] = {"seed": self.seed}
        if self.client is not None:
            table["client"] = self.client.to_dict()
        for spec in fields(self):
            if spec.name in _SECTIONS:
                values = asdict(getattr(self, spec.name)).items()
                table[spec.name] = {
                    k: list(v) if isinstance(v, tuple) else v for k, v in values if v is not None
                }
        return table | {"defense": [_described(defense) for defense in self.defenses]}


def _described(defense: Defense) -> dict[str, Any]:
    try:
        return defense.to_dict()
    except ValueError:  # hours of work are not to end here, where the report is written
        dp = {} if defense.dp is None else {"dp": defense.dp.to_dict()}
        cohort = {} if defense.cohort == 1 else {"cohort": defense.cohort}
        return {"name": defense.name, **cohort, **dp, "transform": repr(defense.chain)}


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, with one-line errors."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableInputError(f"{path}: no such file; give the path of a study") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInputError(f"{path}: cannot be read: {one_line(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UnusableInputError(f"{path}: not valid TOML: {one_line(error)}") from error
    except RecursionError as error:
        raise UnusableInputError(f"{path}: brackets are nested too deeply to be read") from error


def default_table(*, head: str = "head") -> dict[str, Any]:
    """The study behind ``gradguard evaluate`` without arguments, as plain data.

    Args:
        head: Name of the model's output layer, which one of the defences withholds; empty where
            the model is nothing but that layer.
    """
    packaged = resources.files("gradguard.evaluation").joinpath("default_study.toml")
    text = packaged.read_text(encoding="utf-8")
    return tomllib.loads(text.replace('"head.*"', f'"{head}.*"' if head else '"*"'))


def _defenses(tables: object) -> tuple[Defense, ...]:
    if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
        raise UnusableInputError("defences are written as [[defense]] tables, each with a name")
    return tuple(_defense(i, dict(table)) for i, table in enumerate(tables, start=1))


def _defense(position: int, table: dict[str, Any]) -> Defense:
    name = table.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UnusableInputError(f"defence {position} needs a name, text of its own, got {name!r}")
    try:
        return Defense.from_dict(table)
    except (ValueError, TypeError, KeyError) as error:
        # The middleware's own message starts with the defence's name already.
        text = one_line(error).removeprefix(f"defence {name!r}: ")
        raise UnusableInputError(f"defence {name!r}: {text}") from error
