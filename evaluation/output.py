"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.report import Report

FILES = ("report.json", "report.html", "report.md", "tradeoff.png", "tradeoff.svg")


def check_writable(folder: Path) -> None:
    """Raise unless files can be written to ``folder``; leaves nothing behind.

    Tried out, not asked for: permission bits say nothing to root, or about a full or read-only
    file system.
    """
    missing: list[Path] = []
    try:
        # Inside the try: a name that is too long cannot even be asked about.
        missing += [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in FILES:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(
            f"{folder}: cannot write there ({why}); choose another folder with --out"
        ) from error
    finally:
        for created in missing:
            if created.is_dir():
                created.rmdir()


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds all of it or what it held before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files for the owner only; a report is to be shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.html``, ``report.md`` and the plots; returns their paths."""
    # Everything is rendered before anything is written.
    # A file name need not be UTF-8, and the command is in the report: such bytes are escaped.
    json = report.to_json().encode(errors="backslashreplace")
    return _write({"report.json": json} | _views(report), folder)


def write_views(report: Report, folder: Path) -> list[Path]:
    """Write all that is made from ``report.json``, and not that file; returns the paths."""
    return _write(_views(report), folder)


def _views(report: Report) -> dict[str, bytes]:
    # matplotlib takes a second to load, and a mistyped command should not wait for it.
    from gradguard.evaluation.views.html import render_html
    from gradguard.evaluation.views.markdown import render_markdown
    from gradguard.evaluation.views.plots import draw

    html, markdown, plots = render_html(report), render_markdown(report), draw(report)
    return {
        "report.html": html.encode(errors="xmlcharrefreplace"),
        "report.md": markdown.encode(errors="xmlcharrefreplace"),
        "tradeoff.png": plots["png"],
        "tradeoff.svg": plots["svg"],
    }


def _write(contents: dict[str, bytes], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_atomically(folder / name, data)
    return [folder / name for name in contents]
