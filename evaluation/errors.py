"""The one exception that means "the input cannot be used", as opposed to a defect in gradguard."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UnusableInputError(ValueError):
    """A study, data set, model or folder that cannot be used; the message is one line.

    The command line prints the message and exits with code 2. Anything else that is raised is a
    defect, and keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """The message of a foreign exception on one line, or its type where it has no message.

    >>> one_line(ValueError("first\\n  second"))
    'first second'
    >>> one_line(KeyError())
    'KeyError'
    """
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """Text from a stranger on one line, without what a terminal or a job's log would obey.

    >>> print(printable("a\\x1b[2J\\n::error::b ##[error]c"))
    a\\x1b[2J\\n::error::b ##\\[error]c
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )
    # A workflow command of the old kind, which is obeyed anywhere in a line.
    return shown.replace("##[", "##\\[")


def unknown(kind: str, name: str, known: Collection[str]) -> UnusableInputError:
    """An error for a misspelt name that offers the nearest one that exists.

    >>> print(unknown("key in [attack]", "trails", ["trials", "stages"]))
    unknown key in [attack]: 'trails'; did you mean 'trials'? Known: stages, trials
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnusableInputError(f"unknown {kind}: {name!r}; {hint}Known: {', '.join(sorted(known))}")
