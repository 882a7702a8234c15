from __future__ import annotations

import io

from rich.console import Console

from gradguard.evaluation.progress import Bar, Lines, shown


def test_the_name_of_a_defence_is_not_taken_for_markup() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=100)) as bar:
        bar.begin(2)
        bar.doing("[/b]: training")
        bar.advance()
    assert "[/b]: training" in stream.getvalue()


def test_a_bar_says_how_many_are_done_and_how_fast() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=120)) as bar:
        bar.begin(5)
        bar.advance()
        bar.advance()
    assert "2/5" in stream.getvalue()
    assert "/min" in stream.getvalue()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(seconds_each: float, *, pieces: int = 10) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(Console(file=stream, width=60), clock=clock)
    lines.begin(pieces)
    for piece in range(pieces):
        lines.doing(f"[b]defence {piece}: attacks")
        clock.now += seconds_each
        lines.advance()
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_every_thirty_seconds_and_one_at_the_end() -> None:
    assert told(12) == [
        "gradguard: 3 of 10 done, 5 a minute, about 1 min 24 s left; [b]defence 2: attacks",
        "gradguard: 6 of 10 done, 5 a minute, about 48 s left; [b]defence 5: attacks",
        "gradguard: 9 of 10 done, 5 a minute, about 12 s left; [b]defence 8: attacks",
        "gradguard: 10 of 10 done in 2 min 0 s",
    ]


def test_what_was_done_before_counts_neither_as_quick_nor_as_left() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(Console(file=stream, width=60), clock=clock)
    lines.begin(100, done=90)
    lines.doing("a")
    clock.now += 60
    lines.advance()
    assert stream.getvalue() == ("gradguard: 91 of 100 done, 1 a minute, about 9 min 0 s left; a\n")


def test_a_bar_begins_with_what_was_done_before() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=120)) as bar:
        bar.begin(5, done=3)
        bar.advance()
    assert "4/5" in stream.getvalue()


def test_a_note_is_shown_in_logs_and_above_a_bar() -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        with shown(Console(file=stream, force_terminal=terminal, width=100)) as progress:
            progress.begin(1)
            progress.note("[b] was damaged")
        assert "gradguard: [b] was damaged" in stream.getvalue()


def test_what_is_quickly_over_is_not_spoken_of() -> None:
    assert told(1) == []


def test_quiet_says_nothing_and_a_pipe_gets_no_bar() -> None:
    stream = io.StringIO()
    with shown(Console(file=stream, force_terminal=True), quiet=True) as progress:
        progress.begin(1)
        progress.doing("x")
        progress.advance()
    assert stream.getvalue() == ""
    with shown(Console(file=stream)) as progress:
        assert isinstance(progress, Lines)
    with shown(Console(file=stream, force_terminal=True)) as progress:
        assert isinstance(progress, Bar)
