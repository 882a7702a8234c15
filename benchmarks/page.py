"""How long ``report.html`` is and how fast it opens: 1,000 rows in headless Chromium.

The rows are made up (50 defences under 20 conditions, 26 attackers, 4 levels of knowledge, one
defence in five with a certificate), because a study of that size takes hours. The page is opened
from its file in a fresh browser context each time. "Drawn" is the page's own clock, from the start
of the navigation to the frame after the last chart; the load event is part of it.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradguard import DPSGD
from gradguard.evaluation import AttackScore, Report, Row
from gradguard.evaluation.certificates.certify import certify
from gradguard.evaluation.knowledge import LEVELS
from gradguard.evaluation.report import KnowledgeScore
from gradguard.evaluation.views.html import render_html
from gradguard.evaluation.views.plotly_script import plotly_script

DEFENSES, SIZES, ATTACKS, REPEATS = 50, (1, 8, 32, 64, 128), 26, 5
MOST_BYTES, MOST_SECONDS = 3_000_000, 3.0

BARE = (
    '<!doctype html><html><meta charset="utf-8"><script>{}</script><script>'
    "document.documentElement.dataset.loaded = performance.now()</script>"
)
"""A page without anything else, to tell what of the time is the library's own."""

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def made_up(defenses: int = DEFENSES) -> Report:
    """A report of ``20 * defenses`` rows, the same every time."""
    rng = np.random.default_rng(0)
    cells = list(itertools.product(("init", "trained"), ("iid", "skewed"), SIZES))
    certificate = certify(
        DPSGD(noise_multiplier=4.0, max_grad_norm=1.0),
        composition="iid",
        batch_size=8,
        label_prior=[0.1] * 10,
        training_releases=100,
        sample_rate=0.1,
    )
    rows = []
    for number in range(defenses):
        accuracy, size = float(rng.uniform(0.3, 0.98)), float(rng.uniform(300, 40_000))
        strength = float(rng.uniform(0.0, 0.75))  # of the leak
        for cell in cells:
            row = _row(rng, strength, f"defence {number} of the grid, top-k 0.1 %", cell)
            row = replace(row, accuracy=accuracy, bytes_per_update=size)
            if number % 5 == 0:
                row = replace(row, epsilon=1.25, delta=1e-5, certificate=certificate)
            rows.append(row)
    facts: dict[str, Any] = {
        "method": "Made up.",
        "wall_seconds": 1.0,
        "data": {"name": "made up"},
        "models_attacked": 3,
        "batches_per_row": {"scored": 100, "calibration": 50, "simulated_per_seed": 0},
    }
    return Report({"training": {"seeds": 3}, "defense": []}, tuple(rows), facts)


def _row(rng: np.random.Generator, strength: float, name: str, cell: tuple[str, str, int]) -> Row:
    rates = 0.2 + strength * rng.uniform(0.2, 1.0, ATTACKS)
    scores = {
        f"TemplateRegression({chr(97 + i)})": AttackScore(
            float(rate), (float(rate) - 0.03, min(float(rate) + 0.03, 1.0)), float(rate) / 2
        )
        for i, rate in enumerate(rates)
    }
    worst = max(scores, key=lambda key: scores[key].asr)
    best = scores[worst]
    return Row(
        defense=name,
        stage=cell[0],
        composition=cell[1],
        batch_size=cell[2],
        accuracy=0.5,
        accuracy_ci=(0.4, 0.6),
        accuracy_seeds=(0.5, 0.5, 0.5),
        diverged=False,
        dense_bytes=38_440,
        step_overhead=1.25,
        attacks=scores,
        skipped={},
        worst_attack=worst,
        worst_asr=best.asr,
        worst_ci=best.ci,
        blind_asr=0.2,
        advantage=(best.asr - 0.2) / 0.8,
        advantage_ci=((best.asr - 0.23) / 0.8, 1.0),
        knowledge={
            level: KnowledgeScore(worst, best.asr * (i + 1) / 4, best.ci, best.advantage)
            for i, level in enumerate(LEVELS)
        },
    )


def opened(page: Path, *, ready: str) -> list[float]:
    """Seconds until the page was ready by its own clock, in fresh contexts of one browser.

    Args:
        ready: The attribute of its ``<html>`` that holds the milliseconds.
    """
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for _ in range(REPEATS):
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            tab = context.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_selector(f"html[{ready}]", timeout=60_000)
            found.append(float(tab.locator("html").get_attribute(ready) or 0) / 1000)
            context.close()
        browser.close()
    return found


def _say(what: str, taken: list[float]) -> None:
    each = ", ".join(f"{seconds:.2f}" for seconds in taken)
    print(f"{what}: after {each} s; median {statistics.median(taken):.2f} s")


def main() -> bool:
    """Print both numbers; whether both targets were met."""
    report, script = made_up(), plotly_script()
    if script is None or shutil.which("chromium") is None:
        print("skipped: needs plotly (pip install 'gradguard[report]') and chromium on the path")
        return True
    html = render_html(report).encode()
    own = len(html) - len(script.encode())
    print(f"{len(report.rows)} rows: {own:,} bytes without plotly's script, {len(html):,} with it")
    with tempfile.TemporaryDirectory() as folder:
        page, bare = Path(folder) / "report.html", Path(folder) / "bare.html"
        page.write_bytes(html)
        bare.write_text(BARE.format(script), encoding="utf-8")
        _say("plotly's script alone", opened(bare, ready="data-loaded"))
        taken = opened(page, ready="data-ready")
        _say("all charts drawn", taken)
    return own <= MOST_BYTES and max(taken) <= MOST_SECONDS


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
