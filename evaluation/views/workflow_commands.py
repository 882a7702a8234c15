"""What a job on GitHub Actions reads, and must not read: annotations, output, the summary page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from gradguard.evaluation.errors import printable

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file of a step's summary."""

Level = Literal["error", "warning", "notice"]


def annotation(level: Level, *, title: str, message: str) -> str:
    """One workflow command, on one line whatever is in its words.

    Guarantees:

    - what is in title or message can neither end the command nor begin another;
    - percent signs, line ends, and in a title colons and commas are shown as they are.

    >>> annotation("error", title="gate: a, b", message="100 %\\nof all: leaked")
    '::error title=gate%3A a%2C b::100 %25%0Aof all: leaked'
    """
    escaped = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={escaped}::{_escaped(message)}"


def harmless(text: str) -> str:
    """Text for a line of output that neither steers a terminal nor a job.

    Guarantees:

    - it is one line of printable characters: spaces are folded, other characters escaped;
    - it holds no ``::`` and no ``##``, with one of which every workflow command begins. Not only
      at its start: a long line is wrapped, and then any word may begin one.

    >>> print(harmless("::error::x ##[error]y"))
    : :error: :x # #[error]y
    >>> print(harmless("a\\n b\\x1b[2J"))
    a b\\x1b[2J
    """
    return printable(re.sub(r"([:#])(?=\1)", r"\1 ", " ".join(text.split())))


def _escaped(text: str) -> str:
    # The percent sign first: it is what the others are written with.
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    # Other ends of a line that some program on the way may know.
    return "".join(c if c.isprintable() else " " for c in text)


def append_summary(markdown: str, *, environment: Mapping[str, str] = os.environ) -> str | None:
    """Add to the job's summary, where there is one.

    Returns:
        Why it could not be written, or ``None``: a summary decides nothing, so that a full disk
        must not change what a gate says.
    """
    if not (name := environment.get(SUMMARY)):
        return None
    try:
        with Path(name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{markdown.rstrip()}\n\n")
    except (OSError, ValueError) as error:
        return f"{SUMMARY} could not be written ({getattr(error, 'strerror', None) or error})"
    return None
