from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.views.workflow_commands import (
    SUMMARY,
    annotation,
    append_summary,
    harmless,
)

COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)")


@given(st.text(), st.text())
def test_no_text_ends_a_command_or_begins_another(title: str, message: str) -> None:
    line = annotation("error", title=title, message=message)
    assert COMMAND.fullmatch(line)
    assert len(line.splitlines()) == 1


@given(st.text("abc%:,\r\n =", max_size=20), st.text("abc%:,\r\n =", max_size=20))
def test_what_is_escaped_is_shown_as_it_was(title: str, message: str) -> None:
    found = COMMAND.fullmatch(annotation("notice", title=title, message=message))
    assert found is not None
    assert [unquote(part) for part in found.groups()[1:]] == [title, message]


def test_a_message_cannot_start_a_command_of_its_own() -> None:
    line = annotation("warning", title="a", message="\n::error::stop\r\n%0A::x::")
    assert line == "::warning title=a::%0A::error::stop%0D%0A%250A::x::"


@given(st.text() | st.text(":#\n ab\x1b\u2028"))
def test_harmless_text_is_one_printable_line_without_a_command(text: str) -> None:
    line = harmless(text)
    assert line.isprintable()
    assert not {"::", "##"} & {line[i : i + 2] for i in range(len(line))}
    assert harmless(line) == line


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("top-k 1 %, B = 8: [x] #1", "naïve ε ≤ 1"):
        assert harmless(text) == text


def test_a_summary_is_appended_where_the_job_has_one(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    path.write_text("before\n")
    for text in ("# one", "two \udcff"):
        assert append_summary(text, environment={SUMMARY: str(path)}) is None
    assert path.read_text() == "before\n# one\n\ntwo \\udcff\n\n"
    assert append_summary("x", environment={}) is None
    assert append_summary("x", environment={SUMMARY: ""}) is None


def test_a_summary_that_cannot_be_written_is_said_and_no_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "none" / "file"), "a\0b"):
        said = append_summary("x", environment={SUMMARY: name})
        assert said is not None
        assert SUMMARY in said
