"""What is being done and how much is left: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS = 30
"""Between two lines in a log."""


class Progress(Protocol):
    """Told about the work by :func:`gradguard.evaluation.evaluate`."""

    def begin(self, total: int, done: int = 0) -> None:
        """There are ``total`` pieces of work, of roughly equal length; ``done`` from before."""
        ...

    def doing(self, what: str) -> None:
        """The piece that is worked on now, in a few words."""
        ...

    def advance(self) -> None:
        """One more piece is done."""
        ...

    def note(self, what: str) -> None:
        """Something that whoever watches should know."""
        ...


class Silent:
    """Shows nothing: the default of :func:`gradguard.evaluation.evaluate`."""

    def begin(self, total: int, done: int = 0) -> None:
        pass

    def doing(self, what: str) -> None:
        pass

    def advance(self) -> None:
        pass

    def note(self, what: str) -> None:
        pass


def shown(console: Console, *, quiet: bool = False) -> AbstractContextManager[Progress]:
    """A bar on a terminal, lines in a log, or nothing."""
    if quiet:
        return nullcontext(Silent())
    return Bar(console) if console.is_terminal else nullcontext(Lines(console))


class Lines:
    """A plain line every 30 seconds, for logs; nothing about what is over before the first.

    Args:
        clock: Seconds that have passed.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._total = self._done = self._before = 0
        self._what = ""
        self._start = self._said = clock()
        self._spoken = False

    def begin(self, total: int, done: int = 0) -> None:
        self._total, self._start = total, self._clock()
        self._done = self._before = done

    def doing(self, what: str) -> None:
        self._what = what

    def advance(self) -> None:
        self._done += 1
        if self._clock() - self._said >= SECONDS or (self._spoken and self._done == self._total):
            self._say()

    def note(self, what: str) -> None:
        self._print(f"gradguard: {what}")

    def _say(self) -> None:
        self._said, self._spoken = self._clock(), True
        taken = self._said - self._start
        words = f"gradguard: {self._done} of {self._total} done"
        if self._done == self._total:
            words += f" in {duration(taken)}"
        elif self._done > self._before and taken > 0:
            # What was there before took no time, and what is left will.
            rate = (self._done - self._before) / taken
            left = (self._total - self._done) / rate
            words += f", {60 * rate:.0f} a minute, about {duration(left)} left; {self._what}"
        self._print(words)

    def _print(self, words: str) -> None:
        # A line that is folded or styled would be harder to search for.
        self._console.print(words, soft_wrap=True, markup=False, highlight=False)


def duration(seconds: float) -> str:
    """Time in the two units that matter.

    >>> duration(42.4), duration(605), duration(7_300)
    ('42 s', '10 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Bar(AbstractContextManager["Bar"]):
    """A rich progress bar: units done, how many a minute, the time left, the unit at work."""

    def __init__(self, console: Console) -> None:
        self._progress = RichProgress(
            # Names of defences are data: without this a bracket in one would be taken for markup.
            TextColumn("{task.description:<44.44}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=None, rate="")
        self._start, self._done = time.monotonic(), 0  # pieces of this run alone

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

    def begin(self, total: int, done: int = 0) -> None:
        self._start = time.monotonic()
        # Not an advance: the time left is estimated from those.
        self._progress.reset(self._task, total=total, completed=done)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def advance(self) -> None:
        self._done += 1
        rate = 60 * self._done / max(time.monotonic() - self._start, 1e-3)
        self._progress.update(self._task, advance=1, rate=f"{rate:.0f}/min")

    def note(self, what: str) -> None:
        said = f"gradguard: {what}"
        self._progress.console.print(said, soft_wrap=True, markup=False, highlight=False)
