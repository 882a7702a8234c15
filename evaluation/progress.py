"""What is being done and how much is left: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Told about the work by :func:`gradguard.evaluation.evaluate`."""

    def begin(self, total: int) -> None:
        """There are ``total`` pieces of work, of roughly equal length."""
        ...

    def doing(self, what: str) -> None:
        """The piece that is worked on now, in a few words."""
        ...

    def advance(self) -> None:
        """One more piece is done."""
        ...


class Silent:
    """Shows nothing: the default of :func:`gradguard.evaluation.evaluate`."""

    def begin(self, total: int) -> None:
        pass

    def doing(self, what: str) -> None:
        pass

    def advance(self) -> None:
        pass


class Bar(AbstractContextManager["Bar"]):
    """A rich progress bar with the time left; silent where the console is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = RichProgress(
            # Names of defences are data: without this a bracket in one would be taken for markup.
            TextColumn("{task.description:<44.44}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def advance(self) -> None:
        self._progress.advance(self._task)
