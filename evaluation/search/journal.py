"""What a search has tried, kept on disk as Optuna's journal while it runs.

The journal is a file of JSON lines that is only ever added to. Reading it unpickles nothing:
Optuna pickles snapshots of other backends than this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.search.proposals import Tried, frozen, point_of, quiet_optuna
from gradguard.evaluation.search.space import Point, Space

try:
    import fcntl
except ImportError:  # on Windows, where two searches in one folder are not found out
    fcntl = None  # type: ignore[assignment]

NAME = "gradguard"
SETTINGS = "settings"
OBJECTIVES = 3


class _NoLock(JournalFileOpenLock):
    """Optuna's own lock outlives a killed process, and the next one would wait for half a minute.

    :class:`Journal` locks the file for as long as it is open instead, and the system releases that.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Journal(AbstractContextManager["Journal"]):
    """The finished trials of one search, in the order in which they were proposed.

    Guarantees:

    - a trial is there with all its values or not at all, whenever the process is killed;
    - a journal of other settings or another space is refused;
    - one that is closed without a trial is removed;
    - two processes do not write to one journal (where the system has file locks).

    Args:
        path: The file; made where there is none.
        space: What is searched.
        settings: Plain data that must be the same when the search goes on.

    Raises:
        UnusableInputError: The file is no such journal, or is of another search, or in use.
    """

    def __init__(self, path: Path, *, space: Space, settings: Mapping[str, Any]) -> None:
        self._path, self._space = path, space
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise UnusableInputError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self._lock()
            _drop_half_a_line(path)
            self._study = self._opened(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._study.get_trials(deepcopy=False):
            # Of a search that could not begin, nothing is to stand in the way of the next.
            self._path.unlink(missing_ok=True)
        self._file.close()

    def tried(self) -> list[Tried]:
        """What was tried so far."""
        trials = self._study.get_trials(deepcopy=False)
        try:
            return [Tried(point_of(self._space, t.params), tuple(t.values)) for t in trials]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._foreign(error) from error

    def tell(self, point: Point, values: Sequence[float]) -> None:
        """Add a trial; on disk when this returns."""
        self._study.add_trial(frozen(self._space, point, values))

    def _opened(self, settings: dict[str, Any]) -> optuna.Study:
        try:
            with quiet_optuna():
                backend = JournalFileBackend(str(self._path), lock_obj=_NoLock(str(self._path)))
                study = optuna.create_study(
                    storage=JournalStorage(backend),
                    study_name=NAME,
                    directions=["minimize"] * OBJECTIVES,
                    load_if_exists=True,
                )
        except Exception as error:  # whatever a file of something else makes Optuna stumble over
            raise self._foreign(error) from error
        known = study.user_attrs.get(SETTINGS)
        if known is None:
            study.set_user_attr(SETTINGS, settings)
        elif known != settings:
            other = [key for key in settings if not _same(known, settings, key)] or [SETTINGS]
            raise UnusableInputError(
                f"{self._path}: is of a search with another {other[0]}; go on with that, or "
                "choose another folder with --out"
            )
        return study

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UnusableInputError(
                f"{self._path}: another search is at work there; choose another folder with --out"
            ) from error

    def _foreign(self, error: Exception) -> UnusableInputError:
        return UnusableInputError(
            f"{self._path}: not the journal of this search ({one_line(error)}); choose another "
            "folder with --out"
        )


def _same(known: object, settings: Mapping[str, Any], key: str) -> bool:
    return isinstance(known, dict) and known.get(key) == settings[key]


def _drop_half_a_line(path: Path) -> None:
    """A line without an end is what a killed process left: the next would be glued to it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)
