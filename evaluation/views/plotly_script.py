"""The script that draws the charts, from an installed plotly; nothing is downloaded."""

from __future__ import annotations

from importlib import resources, util

HINT = "interactive charts need plotly: pip install 'gradguard[report]'"


def charts_hint() -> str | None:
    """What to install for interactive charts in ``report.html``; ``None`` where it is there."""
    return HINT if util.find_spec("plotly") is None else None


def plotly_script() -> str | None:
    """plotly.js as text; ``None`` where plotly is not installed."""
    if charts_hint() is not None:
        return None
    bundled = resources.files("plotly").joinpath("package_data/plotly.min.js")
    # A page has one kind of line ending: a browser would read the others as this one, and find
    # another script than the one whose digest the page states.
    return bundled.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")
