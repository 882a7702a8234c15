from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradguard.evaluation.output import write_report
from gradguard.evaluation.views.html import render_html
from gradguard.evaluation.views.plots import draw
from gradguard.evaluation.views.small_multiples import panels
from gradguard.evaluation.views.svg import scatter
from tests.evaluation.examples import certified, informed, report, row

NASTY = '<script>alert("x")</script> & $_{ [bold] %s {}'


class Page(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_everything_from_a_study_is_escaped() -> None:
    nasty = row(
        defense=NASTY, composition=NASTY, stage=NASTY, worst_attack=NASTY, skipped={NASTY: NASTY}
    )
    text = render_html(report(nasty))
    assert "alert(&quot;x&quot;)" in text
    assert 'alert("x")' not in text
    assert [tag for tag, _ in Page(text).tags].count("script") == 1


def test_the_page_needs_nothing_from_outside() -> None:
    text = render_html(report(row()))
    for tag, attributes in Page(text).tags:
        assert not {"src", "href"} & set(attributes), tag
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_table_holds_sortable_values_for_every_row() -> None:
    cells = [
        a for tag, a in Page(render_html(report(row(), row(stage="trained")))).tags if tag == "td"
    ]
    assert len(cells) == 24
    assert all(cell["data-value"] for cell in cells)


def test_bytes_are_beside_how_many_times_less_they_are_than_dense() -> None:
    text = render_html(report(row(bytes_per_update=1234.4, dense_bytes=38440)))
    assert '<td class="" data-value="1234.4">1,234</td>' in text
    assert '">31.1×</td>' in text
    assert text.count("not measured") == 0
    assert render_html(report(row(bytes_per_update=None))).count("not measured") == 2


def test_what_is_proven_is_in_a_table_and_in_words() -> None:
    text = render_html(report(row(), certified(defense=NASTY), certified(stage="trained")))
    assert "What is proven, against every attacker" in text
    assert "Whoever sees one message from iid batches of 8" in text
    assert text.count("None of this covers") == text.count("BatchNorm statistics") == 1
    assert "<td>none</td><td>none</td><td>none</td>" in text
    assert 'alert("x")' not in text
    assert "What is proven" not in render_html(report(row()))


def test_leakage_against_knowledge_is_plotted_for_every_row_that_says() -> None:
    text = render_html(report(informed(0.4, 0.5, 0.6, 0.7), informed(1, 1, 1, 1, stage="trained")))
    assert text.count('class="panels"') == 2
    assert "What the attacker has to know" in text
    assert '<td class="text" data-value="70 (68-72) A3">70 (68-72) A3</td>' in text
    assert "What the attacker has to know" not in render_html(report(row()))


def test_panels_are_well_formed_and_show_a_value_for_every_level() -> None:
    rows = [informed(0.4, 0.5, 0.6, 0.7, defense=f"{NASTY} {i}") for i in range(4)]
    image = ElementTree.fromstring(panels(rows))
    values = [e.text for e in image.iter("text") if e.get("class") == "value"]
    assert values == ["40", "50", "60", "70"] * 4
    assert len([e for e in image.iter("text") if e.get("class") == "title"]) == 4
    kinds = [e.get("class") for e in image.iter("g") if e.get("class")][:4]
    assert kinds == ["quiet", "leaks", "leaks", "leaks"]


def test_what_the_attacker_has_is_said() -> None:
    original = report(informed(0.4, 0.5, 0.6, 0.7))
    facts = original.provenance | {"data": {"name": "digits", "auxiliary": 50}}
    settings = {"auxiliary_per_class": 5, "auxiliary_shift": "blur"}
    text = render_html(
        replace(original, provenance=facts, study=original.study | {"attack": settings})
    )
    assert "50 images of its own, at most 5 of a class" in text
    assert "shift &#x27;blur&#x27;" in text


def test_an_interrupted_study_says_so() -> None:
    assert "Interrupted" in render_html(report(row(), complete=False))
    assert "Interrupted" not in render_html(report(row()))


def test_the_scatter_plot_is_well_formed_and_names_every_defence() -> None:
    rows = [row(defense=f"defence {i} & <co>", accuracy=0.1 * i) for i in range(8)]
    texts = [e.text for e in ElementTree.fromstring(scatter(rows)).iter("text")]
    assert {f"defence {i} & <co>" for i in range(8)} <= set(texts)
    assert "blind guess 40 %" in texts


def test_plots_are_images_and_reproducible() -> None:
    original = report(row(), row(stage="trained", defense=NASTY, accuracy_ci=None))
    found = draw(original)
    assert found["png"].startswith(b"\x89PNG")
    ElementTree.fromstring(found["svg"])
    assert found == draw(original)


@pytest.mark.slow
def test_a_browser_sorts_the_table(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on the path: the page's script was not run")
    rows = [row(defense="b", worst_asr=0.9), row(defense="a", worst_asr=0.5), row(defense="c")]
    write_report(report(*rows), tmp_path)
    page = tmp_path / "clicked.html"
    # A click after loading, with the outcome written into the page for the dump below.
    script = (
        "<script>document.querySelectorAll('th button')[5].click();"
        "document.title = [...document.querySelectorAll('tbody tr')]"
        ".map(r => r.cells[0].textContent).join('');</script>"
    )
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page.write_text(source.replace("</body>", f"{script}</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run", "--dump-dom"]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>acb</title>" in done.stdout
    assert 'aria-sort="ascending"' in done.stdout
