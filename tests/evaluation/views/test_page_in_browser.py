"""The page in a real browser: what it draws, what it does, and that it asks for nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from gradguard.evaluation import AttackScore, Report, Row
from gradguard.evaluation.report import Failure
from gradguard.evaluation.search.front import nondominated
from gradguard.evaluation.views.html import render_html
from gradguard.evaluation.views.text import LONG
from tests.evaluation.examples import certified, informed, report, row

pytestmark = pytest.mark.slow

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NASTY = (
    '</script><script>document.title="broken"</script><img src=x onerror="document.title=1">'
    '<!-- <a href="javascript:1">&lt;b&gt; %{x} \u2028'
)
FAILED = Failure(
    defense="odd", composition="iid", stage="init", batch_size=8, why="the loss is not finite"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the path: the page was not opened")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


class Opened:
    """A page in a tab, with what went wrong in it and what it asked for."""

    def __init__(self, browser: Browser, file: Path, fragment: str = "", **context: Any) -> None:
        settings: dict[str, Any] = {"viewport": {"width": 1400, "height": 900}}
        self.context = browser.new_context(**(settings | context))
        self.tab: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(file.as_uri() + fragment)
        self.tab.wait_for_selector("html[data-ready]", timeout=60_000)

    def traces(self, chart: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.tab.evaluate(f"document.getElementById('{chart}').data")
        return found

    def marks(self, chart: str = "scatter") -> set[int]:
        """The rows that have a mark in a chart."""
        return {
            number
            for trace in self.traces(chart)
            for number in np.ravel(trace.get("customdata") or [])
        }

    def shown(self) -> list[str]:
        found: list[str] = self.tab.evaluate(
            "[...document.querySelectorAll('#rows tbody tr:not([hidden])')].map(r => r.id)"
        )
        return found

    def count(self) -> str:
        return self.tab.inner_text("#count")

    def until(self, expression: str) -> None:
        """Waits; by asking again and again, as the page's policy lets nobody evaluate text."""
        for _ in range(200):
            if self.tab.evaluate(expression):
                return
            self.tab.wait_for_timeout(25)
        raise AssertionError(f"never true: {expression}")

    def choose(self, name: str, value: str) -> None:
        self.tab.check(f'input[name="{name}"][value="{value}"]', force=True)

    def selected(self) -> list[str]:
        found: list[str] = self.tab.evaluate(
            "[...document.querySelectorAll('#rows [aria-current]')].map(r => r.id)"
        )
        return found


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a report; afterwards nothing may have gone wrong or been asked for."""
    pages: list[Opened] = []

    def opening(original: Report, fragment: str = "", **context: Any) -> Opened:
        html = render_html(original).encode(errors="xmlcharrefreplace")
        (tmp_path / "report.html").write_bytes(html)
        pages.append(Opened(browser, tmp_path / "report.html", fragment, **context))
        return pages[-1]

    yield opening
    for page in pages:
        page.context.close()
        assert page.wrong == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in page.asked if url.startswith("file:")]) == 1


def grid() -> list[Row]:
    """Three defences under eight conditions, each row with numbers of its own."""
    rng, rows = np.random.default_rng(0), []
    for number, name in enumerate(("none", "top-k", "noise")):
        for stage in ("init", "trained"):
            for composition in ("iid", "skewed"):
                for size in (8, 64):
                    read = round(float(rng.uniform(0.45, 1.0)), 3)
                    scores = {"LLG": read, "BiasCount": round(float(rng.uniform(0.2, 0.9)), 3)}
                    rows.append(
                        replace(
                            informed(0.4, 0.45, 0.5, read, defense=name, stage=stage),
                            composition=composition,
                            batch_size=size,
                            accuracy=(0.95, 0.8, 0.6)[number],
                            accuracy_ci=None,
                            bytes_per_update=(400.0, 32.0, 401.0)[number],
                            worst_asr=read,
                            worst_ci=(read - 0.02, min(read + 0.02, 1.0)),
                            advantage=(read - 0.4) / 0.6,
                            attacks={
                                attack: AttackScore(asr, (asr, asr), (asr - 0.4) / 0.6)
                                for attack, asr in scores.items()
                            },
                        )
                    )
    return rows


def matching(rows: list[Row], **conditions: Any) -> set[int]:
    return {
        number
        for number, one in enumerate(rows)
        if all(getattr(one, name) == value for name, value in conditions.items())
    }


def test_all_charts_are_drawn(show: Any) -> None:
    page = show(report(*grid(), certified(defense="DP-SGD")))
    for chart in ("scatter", "heat_map", "dots-knowledge", "dots-stage", "dots-batch_size"):
        assert page.tab.locator(f"#{chart} svg.main-svg").count() > 0, chart
    assert page.tab.locator("#certified svg.main-svg").count() > 0
    assert page.tab.locator("#dots-rounds").count() == 0
    assert page.marks() == set(range(25))


def test_filters_act_on_the_table_and_on_all_charts(show: Any) -> None:
    rows = grid()
    page = show(report(*rows, failures=(FAILED,)))
    assert page.count() == "25 of 25 rows"
    page.choose("stage", "init")
    page.choose("batch_size", "8")
    expected = matching(rows, stage="init", batch_size=8)
    assert page.count() == f"{len(expected) + 1} of 25 rows"
    assert page.shown() == [*(f"row-{n}" for n in sorted(expected)), "failure-0"]
    assert page.marks() == expected
    assert page.marks("dots-knowledge") <= expected
    assert page.marks("heat_map") <= expected
    # Only one stage is left: there is no change to show.
    assert not page.tab.is_visible("#panel-stage")
    page.choose("composition", "skewed")
    assert page.shown() == [
        f"row-{n}" for n in sorted(matching(rows, stage="init", batch_size=8, composition="skewed"))
    ]
    page.tab.click("text=Show all")
    page.until("document.getElementById('count').textContent === '25 of 25 rows'")
    assert page.tab.is_visible("#panel-stage")


def test_the_heat_map_shows_the_most_that_is_read_in_the_rows_left(show: Any) -> None:
    rows = grid()
    page = show(report(*rows), "#stage=trained")
    kept = [rows[n] for n in sorted(matching(rows, stage="trained"))]
    expected = [
        [
            pytest.approx(100 * max(r.attacks[attack].asr for r in kept if r.defense == name))
            for attack in ("LLG", "BiasCount")
        ]
        for name in ("none", "top-k", "noise")
    ]
    assert page.traces("heat_map")[0]["z"] == expected


def test_the_large_marks_are_the_worst_rows_and_the_front_is_theirs(show: Any) -> None:
    rows = grid()
    page = show(report(*rows), "#composition=iid")
    kept = sorted(matching(rows, composition="iid"))
    worst = [
        max((n for n in kept if rows[n].defense == name), key=lambda n: rows[n].advantage)
        for name in ("none", "top-k", "noise")
    ]
    large = {
        number
        for trace in page.traces("scatter")
        if trace.get("error_y")
        for number in trace["customdata"]
    }
    assert large == set(worst)
    points = np.array([[-rows[n].accuracy, rows[n].advantage] for n in worst])
    expected = sorted(-points[nondominated(points)][:, 0] * 100)
    (front,) = [t for t in page.traces("scatter") if t.get("name") == "Pareto front"]
    assert front["x"] == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_the_front_of_the_page_is_that_of_the_search(show: Any, levels: int) -> None:
    points = np.random.default_rng(levels).integers(0, levels, (400, 2)).astype(float)
    page = show(report(row()))
    found = page.tab.evaluate("points => nondominated(points)", points.tolist())
    assert found == nondominated(points).tolist()


def test_a_diverged_defence_is_not_on_the_front(show: Any) -> None:
    quiet = row(defense="broken", accuracy=0.0, diverged=True, advantage=0.0)
    page = show(report(row(), quiet))
    (front,) = [t for t in page.traces("scatter") if t.get("name") == "Pareto front"]
    assert front["x"] == pytest.approx([90])
    (cross,) = [t for t in page.traces("scatter") if t.get("name") == "diverged"]
    assert (cross["x"], cross["y"], cross["showlegend"]) == ([0], [0], True)


def test_where_no_training_diverged_no_cross_is_explained(show: Any) -> None:
    page = show(report(row()))
    (cross,) = [t for t in page.traces("scatter") if t.get("name") == "diverged"]
    assert (cross["x"], cross["showlegend"]) == ([], False)


def test_bytes_and_labels_read_can_be_the_axes(show: Any) -> None:
    rows = [row(), row(defense="b", bytes_per_update=None), row(defense="c", bytes_per_update=99.0)]
    page = show(report(*rows))
    page.choose("cost", "bytes")
    page.choose("measure", "labels")
    assert page.marks() == {0, 2}
    traces = [trace for trace in page.traces("scatter") if trace.get("error_y")]
    assert [(trace["x"], trace["y"]) for trace in traces] == [([32, 99], [70, 70])]
    assert page.tab.evaluate("location.hash") == "#cost=bytes&measure=labels"


def click_mark(page: Opened, number: int) -> None:
    """A real click where the mark of a row is."""
    at = page.tab.evaluate(
        """number => {
          const div = document.getElementById("scatter");
          div.scrollIntoView({ block: "center" });
          const trace = div.data.find(t => t.error_y && t.customdata.includes(number));
          const place = trace.customdata.indexOf(number), box = div.getBoundingClientRect();
          const { xaxis, yaxis, margin } = div._fullLayout;
          return [box.x + margin.l + xaxis.d2p(trace.x[place]),
            box.y + margin.t + yaxis.d2p(trace.y[place])];
        }""",
        number,
    )
    page.tab.mouse.move(*at)
    page.tab.wait_for_selector("#scatter .hoverlayer .hovertext")
    page.tab.mouse.click(*at)


def test_a_click_on_a_point_shows_its_row(show: Any) -> None:
    rows = [row(defense="a", accuracy=0.9), row(defense="b & <c>", accuracy=0.5, advantage=0.2)]
    page = show(report(*rows))
    assert not page.tab.is_visible("#card")
    click_mark(page, 1)
    page.tab.wait_for_selector("#card:not([hidden])")
    assert page.selected() == ["row-1"]
    assert page.tab.inner_text("#card h3") == "b & <c>"
    assert "LLG" in page.tab.inner_text("#card")
    assert page.tab.evaluate("location.hash") == "#row=1"
    page.tab.click("#card >> text=To its row")
    assert page.tab.evaluate("document.activeElement.id") == "row-1"


def ringed(page: Opened) -> list[float]:
    rings = [t for t in page.traces("scatter") if t.get("marker", {}).get("size") == 24]
    found: list[float] = rings[0]["x"]
    return found


def test_a_click_on_a_row_highlights_its_point(show: Any) -> None:
    page = show(report(row(defense="a", accuracy=0.25), row(defense="b", accuracy=0.5)))
    assert ringed(page) == []
    page.tab.click("#row-1 td >> nth=0")
    assert ringed(page) == [50]
    page.tab.click("#row-0 td >> nth=0")
    assert ringed(page) == [25]
    assert page.selected() == ["row-0"]


def test_a_row_that_is_filtered_away_is_no_longer_looked_at(show: Any) -> None:
    page = show(report(row(), row(stage="trained")), "#row=1")
    assert page.selected() == ["row-1"]
    page.choose("stage", "init")
    assert page.selected() == []
    assert ringed(page) == []
    assert not page.tab.is_visible("#card")


def test_everything_can_be_done_by_keys(show: Any) -> None:
    page = show(report(*[row(defense=n, accuracy=a) for n, a in (("x", 0.5), ("y", 0.3))]))
    press, active = page.tab.keyboard.press, "document.activeElement"
    page.tab.focus("#scatter")
    press("ArrowRight")
    assert page.tab.inner_text("#card h3") == "y"
    press("ArrowRight")
    assert page.tab.inner_text("#card h3") == "x"
    press("Enter")
    assert page.tab.evaluate(f"{active}.id") == "row-0"
    press("ArrowDown")
    press("Enter")
    assert page.selected() == ["row-1"]
    press("Shift+Tab")
    assert page.tab.evaluate(f"{active}.textContent") == "step time"
    press("Enter")
    assert page.tab.get_attribute("th:has(:focus)", "aria-sort") == "ascending"


def test_filters_and_switches_are_reached_by_tab_and_changed_by_arrows(show: Any) -> None:
    page = show(report(row(), row(stage="trained")))
    for _ in range(20):
        page.tab.keyboard.press("Tab")
        if page.tab.evaluate("document.activeElement.name") == "stage":
            break
    page.tab.keyboard.press("ArrowRight")
    assert page.count() == "1 of 2 rows"
    outline = page.tab.evaluate("getComputedStyle(document.activeElement.nextSibling).outlineStyle")
    assert outline == "solid"


def test_the_table_is_sorted_by_value_and_failures_stay_at_its_end(show: Any) -> None:
    rows = [row(defense="a", worst_asr=0.9), row(defense="b", worst_asr=0.5), row(defense="c")]
    page = show(report(*rows, failures=(FAILED,)))
    page.tab.click("th button >> text=labels read")
    assert page.shown() == ["row-1", "row-2", "row-0", "failure-0"]
    page.tab.click("th button >> text=labels read")
    assert page.shown() == ["row-0", "row-2", "row-1", "failure-0"]


def test_a_link_leads_to_a_view(show: Any) -> None:
    rows = grid()
    page = show(report(*rows), "#batch_size=64&stage=trained&row=999&composition=nonsense")
    assert set(page.shown()) == {f"row-{n}" for n in matching(rows, batch_size=64, stage="trained")}
    page.tab.evaluate("location.hash = '#batch_size=8'")
    page.until("document.getElementById('count').textContent === '12 of 24 rows'")


def test_a_chart_has_its_content_as_a_table(show: Any) -> None:
    page = show(report(*grid()))
    page.tab.click("text=Labels read by attacker as a table")
    page.tab.wait_for_selector("[data-chart=heat_map] table")
    head = page.tab.locator("[data-chart=heat_map] thead th").all_inner_texts()
    assert head == ["defence", "LLG", "BiasCount"]
    assert page.tab.locator("[data-chart=heat_map] tbody tr").count() == 3


def test_an_attack_that_was_skipped_is_a_cross_with_its_reason(show: Any) -> None:
    score = AttackScore(0.7, (0.6, 0.8), 0.5)
    rows = [row(attacks={"LLG": score}), row(attacks={}, skipped={"LLG": "no bias"}, defense="b")]
    page = show(report(*rows))
    assert page.traces("heat_map")[0]["z"] == [[70], [None]]
    assert page.traces("heat_map")[1]["hovertext"] == ["<b>b</b><br>LLG was not run: no bias"]


def background(page: Opened) -> str:
    found: str = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def words_color(page: Opened) -> str:
    found: str = page.tab.evaluate("document.getElementById('scatter').layout.font.color")
    return found


def test_it_is_dark_where_the_system_is_and_so_are_its_charts(show: Any) -> None:
    light, dark = show(report(row())), show(report(row()), color_scheme="dark")
    assert background(light) == "rgb(255, 255, 255)"
    assert background(dark) == "rgb(20, 23, 26)"
    assert words_color(light) != words_color(dark)
    dark.tab.emulate_media(color_scheme="light")
    wanted = words_color(light)
    dark.until(f"document.getElementById('scatter').layout.font.color === '{wanted}'")


def test_it_prints_on_white_with_everything_unfolded(show: Any) -> None:
    page = show(report(*grid()), color_scheme="dark")
    page.tab.evaluate(
        "addEventListener('beforeprint', () => { window.printed = ["
        " document.querySelectorAll('details:not([open], .same)').length,"
        " document.getElementById('scatter').layout.font.color,"
        " document.getElementById('scatter').clientWidth] })"
    )
    printed = page.tab.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 30_000
    closed, ink, _ = page.tab.evaluate("window.printed")
    assert (closed, ink) == (0, "#1b2026")
    assert page.tab.evaluate("document.querySelectorAll('details[open]').length") == 0
    page.tab.emulate_media(media="print")
    assert not page.tab.is_visible("#view")


def test_names_from_a_study_stay_text(show: Any) -> None:
    nasty = row(
        defense=NASTY,
        accuracy=0.3,
        composition=NASTY,
        stage=NASTY,
        worst_attack=NASTY,
        skipped={NASTY: NASTY},
        attacks={f"{NASTY} 2": AttackScore(0.5, (0.4, 0.6), 0.2)},
    )
    failed = Failure(defense=NASTY, composition="iid", stage=NASTY, batch_size=1, why=NASTY)
    facts = report().provenance | {"command": NASTY, "warnings": [NASTY]}
    page = show(report(nasty, row(), failures=(failed,), provenance=facts))
    assert page.tab.title() == "What still leaks: gradguard report"
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("a").count() == 0
    assert page.tab.locator("script").count() == 3
    click_mark(page, 0)
    page.tab.wait_for_selector("#card:not([hidden])")
    assert page.tab.inner_text("#card h3").startswith("</script><script>")
    names = page.tab.locator("#heat_map .yaxislayer-above text").all_text_contents()
    assert any(name.startswith("</script><script>") for name in names)
    page.choose("composition", "skewed")
    assert page.count() == "1 of 3 rows"


def test_what_got_in_after_all_could_neither_run_nor_send(show: Any) -> None:
    page = show(report(row()))
    page.tab.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "document.title = 'broken'";
          document.body.append(script);
        }"""
    )
    sent = page.tab.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'blocked')")
    assert (page.tab.title(), sent) == ("What still leaks: gradguard report", "blocked")
    assert all("Content Security Policy" in text for text in page.wrong)
    page.wrong.clear()


@pytest.mark.parametrize(
    "original",
    [
        report(row()),
        report(row(), complete=False),
        report(failures=(FAILED,)),
        report(),
        report(row(bytes_per_update=None, accuracy_ci=None, attacks={})),
        report(row(advantage=-0.3, advantage_ci=(-2.0, -0.1), worst_asr=0.0, worst_ci=(0.0, 0.0))),
    ],
    ids=["one row", "interrupted", "only failures", "nothing", "old", "below a blind guess"],
)
def test_small_and_odd_reports_open(show: Any, original: Report) -> None:
    page = show(original)
    assert len(page.shown()) == len(original.rows) + len(original.failures)
    assert page.tab.locator("#scatter svg.main-svg").count() > 0 or not original.rows


def test_a_name_without_a_space_does_not_widen_the_page(show: Any) -> None:
    name = "A" * 400
    failed = replace(FAILED, defense=name, why=name)
    page = show(report(row(defense=name, skipped={name: name}), row(), failures=(failed,)))
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 1400
    page.tab.set_viewport_size({"width": 420, "height": 900})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize(("rows", "skipped"), [(1, "visible"), (LONG, "auto")])
def test_only_a_long_table_is_skipped_until_it_is_near(show: Any, rows: int, skipped: str) -> None:
    page = show(report(*[row(defense=f"d{i % 5}", batch_size=i) for i in range(1, rows + 1)]))
    box = "document.querySelector('.wide:has(#rows)')"
    assert page.tab.evaluate(f"getComputedStyle({box}).contentVisibility") == skipped
    if skipped == "visible":  # no hole where it has not been near
        assert page.tab.evaluate(f"{box}.getBoundingClientRect().height") < 150


def test_where_there_is_nothing_to_filter_there_is_no_filter_bar(show: Any) -> None:
    page = show(report(row(), row(defense="b")))
    assert not page.tab.is_visible("#view")
    page.choose("measure", "labels")  # what belongs to the form works without it
    assert page.tab.evaluate("location.hash") == "#measure=labels"
    assert show(report(row(), row(stage="trained"))).tab.is_visible("#view")


def test_on_a_narrow_page_points_are_numbered_and_the_numbers_explained(show: Any) -> None:
    rows = [row(defense="low <b>", advantage=0.1), row(defense="high"), row(defense="mid")]
    rows[2] = replace(rows[2], advantage=0.3)
    page = show(report(*rows), viewport={"width": 420, "height": 900})
    assert page.tab.locator("#key li").all_inner_texts() == ["high", "mid", "low <b>"]
    beside = page.tab.locator("#scatter .annotation-text").all_text_contents()
    assert beside == ["a blind guess", "1", "2", "3"]
    assert page.tab.evaluate("[...document.querySelectorAll('#key b')].length") == 1
    page.tab.set_viewport_size({"width": 1400, "height": 900})
    page.until("document.getElementById('key').hidden")
    beside = page.tab.locator("#scatter .annotation-text").all_text_contents()
    assert beside == ["a blind guess", "high", "mid", "low <b>"]


def test_a_chart_that_is_wider_than_the_page_says_that_it_scrolls(show: Any) -> None:
    attacks = {f"Attack {i}": AttackScore(0.7, (0.65, 0.75), 0.5) for i in range(16)}
    page = show(report(row(attacks=attacks)), viewport={"width": 420, "height": 900})
    said = "getComputedStyle(document.querySelector('.tall:has(#heat_map)'), '::before').content"
    assert "Scrolls sideways" in page.tab.evaluate(said)
    page.tab.set_viewport_size({"width": 1400, "height": 900})
    page.until(f"{said} === 'none'")


def test_a_narrow_page_does_not_scroll_sideways(show: Any) -> None:
    page = show(report(*grid()), viewport={"width": 420, "height": 900})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 420


def test_without_plotly_all_but_the_charts_works(
    show: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    rows = grid()
    page = show(report(*rows))
    assert page.tab.is_visible("text=Interactive charts need plotly >> nth=0")
    assert page.tab.evaluate("document.querySelector('img').naturalWidth") > 0
    page.choose("stage", "init")
    assert page.count() == "12 of 24 rows"
    page.tab.click("#row-0 td >> nth=0")
    assert page.selected() == ["row-0"]
    assert page.tab.locator("[data-chart=heat_map] tbody tr").count() == 3


def test_without_scripts_the_rows_can_still_be_read(show: Any, tmp_path: Path) -> None:
    page = show(report(row(), row(defense="b")))
    bare = page.context.browser.new_context(java_script_enabled=False)
    tab = bare.new_page()
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.locator("#rows tbody tr").count() == 2
    assert tab.is_visible("#row-1")
    bare.close()
