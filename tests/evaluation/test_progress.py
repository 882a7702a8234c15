from __future__ import annotations

import io

from rich.console import Console

from gradguard.evaluation.progress import Bar


def test_the_name_of_a_defence_is_not_taken_for_markup() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=100)) as bar:
        bar.begin(2)
        bar.doing("[/b]: training")
        bar.advance()
    assert "[/b]: training" in stream.getvalue()
