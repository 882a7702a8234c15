from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from gradguard.evaluation.report import Failure, Report
from gradguard.evaluation.views.html import FEW, page_data, render_html
from gradguard.evaluation.views.plots import draw
from tests.evaluation.examples import certified, informed, report, row

NASTY = '</script><script>alert("x")</script><!-- & $_{ [bold] %s {} \u2028 \ud800'
FAILED = Failure(
    defense="odd", composition="iid", stage="init", batch_size=4, why="loss is not finite"
)


class Page(HTMLParser):
    """Collects tags and attributes, what scripts hold, and the text between tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)


def test_everything_from_a_study_is_escaped() -> None:
    nasty = row(
        defense=NASTY, composition=NASTY, stage=NASTY, worst_attack=NASTY, skipped={NASTY: NASTY}
    )
    failed = Failure(defense=NASTY, composition=NASTY, stage=NASTY, batch_size=1, why=NASTY)
    facts = report().provenance | {"command": NASTY, NASTY: NASTY, "warnings": [NASTY]}
    page = Page(render_html(report(nasty, failures=(failed,), provenance=facts)))
    assert len(page.named("script")) == 3
    assert 'alert("x")' in "".join(page.words)
    assert "alert" not in page.scripts[-1]


def test_what_a_script_reads_is_what_was_written() -> None:
    original = report(row(defense=NASTY), failures=(FAILED,))
    found = Page(render_html(original)).scripts[0]
    assert json.loads(found) == page_data(original)
    assert not set("<>&\u2028") & set(found)


def test_the_page_needs_nothing_from_outside() -> None:
    page = Page(render_html(report(row())))
    for tag, attributes in page.tags:
        assert not {"src", "href", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    written = render_html(report(row())).replace(page.scripts[1], "")
    assert "http" not in written.replace("http-equiv", "")
    assert "@import" not in written
    assert "url(" not in written


def test_the_policy_names_the_scripts_and_forbids_every_network() -> None:
    page = Page(render_html(report(row())))
    (policy,) = [
        a["content"] or ""
        for a in page.named("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in page.scripts[1:]
    ]
    assert re.findall(r"sha256-([^']+)'", policy) == digests
    assert "unsafe-inline" not in policy.split(";")[1]


def test_the_table_holds_a_line_for_every_row_and_every_failure() -> None:
    page = Page(render_html(report(row(), row(stage="trained"), failures=(FAILED,))))
    assert [a["id"] for a in page.named("tr") if "id" in a] == ["row-0", "row-1", "failure-0"]


def test_failures_are_shown_with_their_reasons_and_are_no_low_score() -> None:
    text = " ".join(Page(render_html(report(row(), failures=(FAILED,)))).words)
    assert "1 of 2 rows could not be made: they have no number at all" in text
    assert text.count("loss is not finite") == 2


def test_a_report_of_nothing_but_failures_is_a_page() -> None:
    page = Page(render_html(report(failures=(FAILED,))))
    assert "No row was finished." in page.words
    assert "scatter" not in [a.get("id") for _, a in page.tags]


def test_bytes_are_beside_how_many_times_less_they_are_than_dense() -> None:
    text = render_html(report(row(bytes_per_update=1234.4, dense_bytes=38440)))
    assert '<td data-v="1234.4">1,234</td>' in text
    assert ">31.1×</td>" in text
    assert text.count("not measured") == 0
    assert render_html(report(row(bytes_per_update=None))).count("not measured") == 2


def test_bytes_can_be_an_axis_only_where_they_were_measured() -> None:
    assert 'name="cost"' in render_html(report(row()))
    assert 'name="cost"' not in render_html(report(row(bytes_per_update=None)))


def test_what_is_proven_is_in_a_table_and_in_words() -> None:
    text = render_html(report(row(), certified(defense=NASTY), certified(stage="trained")))
    assert "What is proven, against every attacker" in text
    assert "Whoever sees one message from iid batches of 8" in text
    assert text.count("None of this covers") == text.count("BatchNorm statistics") == 1
    assert "What is proven" not in render_html(report(row()))


def test_charts_over_one_value_are_left_out() -> None:
    text = render_html(report(row()))
    assert "How leakage changes" not in text
    text = render_html(report(informed(0.4, 0.5, 0.6, 0.7), informed(1, 1, 1, 1, stage="trained")))
    assert 'id="dots-knowledge"' in text
    assert 'id="dots-stage"' in text
    assert 'id="dots-rounds"' not in text


def test_filters_are_offered_for_conditions_with_several_values() -> None:
    def asked(original: Report) -> list[str]:
        inputs = Page(render_html(original)).named("input")
        return [f"{a['name']}={a['value']}" for a in inputs if a["name"] not in ("cost", "measure")]

    assert asked(report(row())) == []
    assert asked(report(row(batch_size=64), row(batch_size=8), failures=(FAILED,))) == [
        *("composition=", "composition=skewed", "composition=iid"),
        *("batch_size=", "batch_size=4", "batch_size=8", "batch_size=64"),
    ]


def test_many_sentences_are_folded_up() -> None:
    few = [row(defense=f"d{i}") for i in range(FEW)]
    assert f"All {FEW} defences</summary>" not in render_html(report(*few))
    assert f"All {FEW + 1} defences</summary>" in render_html(report(*few, row(defense="more")))


def test_an_interrupted_report_says_so() -> None:
    assert "Interrupted: only the rows" in render_html(report(row(), complete=False))


def test_provenance_is_readable_and_complete() -> None:
    facts = report().provenance | {"hardware": {"cpu": "two cores"}, "data_sha256": "beef"}
    text = render_html(report(row(), provenance=facts))
    assert "<dt>hardware</dt><dd>cpu two cores</dd>" in text
    assert "<dt>data sha256</dt><dd>beef</dd>" in text
    assert "&quot;models_attacked&quot;: 2" in text


@pytest.mark.usefixtures("without_plotly")
def test_without_plotly_the_page_says_so_and_shows_the_still_picture() -> None:
    text = render_html(report(row(), certified(defense=NASTY)))
    page = Page(text)
    assert "Interactive charts need plotly: pip install &#x27;gradguard[report]&#x27;" in text
    assert len(page.scripts) == 2
    (image,) = page.named("img")
    kind, _, encoded = (image["src"] or "").partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert ElementTree.fromstring(base64.b64decode(encoded)).tag.endswith("svg")


def test_plots_are_images_and_reproducible() -> None:
    long = row(stage="trained", composition="x" * 400, defense="<b>", accuracy_ci=None)
    original = report(row(), long)
    found = draw(original)
    assert found["png"].startswith(b"\x89PNG")
    ElementTree.fromstring(found["svg"])
    assert found == draw(original)


def test_no_text_in_a_plot_is_taken_for_a_formula() -> None:
    for text in ("$\\bad{$", "a $x_{$ b"):
        svg = draw(report(row(defense=text, composition=text, stage=text)))["svg"].decode()
        assert svg.count(html.escape(text, quote=False)) >= 2  # the title and the name


def test_a_plot_says_which_training_diverged() -> None:
    svg = draw(report(row(defense="a"), row(defense="b", diverged=True)))["svg"].decode()
    assert svg.count("diverged") == svg.count("b (diverged)") > 0
