"""The values in the figures are those of the rows."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from gradguard.evaluation import AttackScore, Row
from gradguard.evaluation.views.charts.certified import certified as certified_figure
from gradguard.evaluation.views.charts.dots import dots
from gradguard.evaluation.views.charts.heat_map import heat_map
from gradguard.evaluation.views.charts.marks import Figure, bars, hover
from gradguard.evaluation.views.charts.scatter import COSTS, scatter
from gradguard.evaluation.views.sentences import tone
from tests.evaluation.examples import certified, informed, row

QUIET = row(
    defense="noise",
    worst_asr=0.41,
    worst_ci=(0.38, 0.43),
    advantage=0.01,
    advantage_ci=(-0.03, 0.04),
    attacks={"LLG": AttackScore(0.41, (0.38, 0.43), 0.01)},
    bytes_per_update=None,
)
ROWS = [row(), QUIET, row(stage="trained", worst_asr=0.5, advantage=0.17, accuracy_ci=None)]


def points(figure: Figure) -> dict[int, tuple[float, float]]:
    return {
        number: (x, y)
        for trace in figure["data"]
        for number, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }


def test_the_scatter_has_accuracy_and_advantage_of_every_row() -> None:
    found = points(scatter(ROWS))
    assert sorted(found) == [0, 1, 2]
    for number, one in enumerate(ROWS):
        assert found[number] == pytest.approx((100 * one.accuracy, 100 * one.advantage))


def test_the_scatter_has_labels_read_where_these_are_asked_for() -> None:
    found = points(scatter(ROWS, measure="labels"))
    assert [found[n][1] for n in range(3)] == pytest.approx([70, 41, 50])


def test_rows_without_bytes_are_not_placed_by_bytes() -> None:
    found = points(scatter(ROWS, cost="bytes"))
    assert {number: x for number, (x, _) in found.items()} == {0: 32.0, 2: 32.0}
    assert points(scatter([QUIET], cost="bytes")) == {}


def test_the_bars_end_where_the_intervals_end() -> None:
    (trace,) = scatter([row()], measure="labels")["data"]
    assert trace["error_y"]["array"] == pytest.approx([5])
    assert trace["error_y"]["arrayminus"] == pytest.approx([5])
    assert trace["error_x"]["array"] == pytest.approx([2])
    uneven = bars([0.5, 0.9], [(0.4, 0.8), None])
    assert (uneven["array"], uneven["arrayminus"]) == ([30.0, 0.0], [10.0, 0.0])


def test_a_bar_is_never_negative() -> None:
    assert bars([1.0], [(0.9, 0.9999999999999999)])["array"] == [0.0]


def test_tones_have_traces_and_symbols_of_their_own() -> None:
    traces = scatter(ROWS)["data"]
    for trace in traces:
        assert {tone(ROWS[number]) for number in trace["customdata"]} == {trace["meta"]}
    assert len({trace["marker"]["symbol"] for trace in traces}) == len(traces) == 2


@pytest.mark.parametrize(
    ("cost", "measure"), list(itertools.product(COSTS, ("advantage", "labels")))
)
def test_every_point_is_within_the_axes(cost: str, measure: str) -> None:
    low = row(worst_asr=0.3, advantage=-0.16, advantage_ci=(-0.3, 0.0), bytes_per_update=0.0)
    rows = [*ROWS, low, row(accuracy=0.0, diverged=True, bytes_per_update=3e9)]
    figure = scatter(rows, cost=cost, measure=measure)
    for x, y in points(figure).values():
        for value, axis in ((x, figure["layout"]["xaxis"]), (y, figure["layout"]["yaxis"])):
            at = math.log10(max(value, 1)) if axis.get("type") == "log" else value
            assert axis["range"][0] < at < axis["range"][1]


def test_the_heat_map_has_every_score_and_why_an_attack_was_not_run() -> None:
    attacks = {"A": AttackScore(0.25, (0.2, 0.3), 0.0), "B": AttackScore(1.0, (1.0, 1.0), 1.0)}
    rows = [row(attacks=attacks), row(attacks={"B": attacks["B"]}, skipped={"A": "no <bias>"})]
    (trace,) = heat_map(rows)["data"]
    assert trace["meta"]["attacks"] == ["A", "B"]
    assert trace["z"] == [[25.0, 100.0], [None, 100.0]]
    assert trace["meta"]["skipped"] == {"1": {"0": "no &lt;bias&gt;"}}


def test_leakage_over_training_has_a_trace_for_every_stage() -> None:
    rows = [row(), row(stage="trained", advantage=0.2), row(defense="b", stage="trained")]
    figure = dots(rows, axis="stage")
    assert figure is not None
    first, second = figure["data"]
    assert (first["name"], first["x"], first["y"]) == ("untrained model", [50.0], [0])
    assert (second["name"], second["x"], second["y"]) == ("trained model", [20.0, 50.0], [0, 1])
    assert figure["layout"]["yaxis"]["ticktext"] == ["top-k 1 %", "b"]


@pytest.mark.parametrize("axis", ["batch_size", "rounds"])
def test_sizes_and_rounds_are_in_their_order(axis: str) -> None:
    figure = dots([row(**{axis: value}) for value in (64, 8, 100)], axis=axis)
    assert figure is not None
    assert [trace["customdata"] for trace in figure["data"]] == [[1], [0], [2]]


def test_leakage_over_knowledge_has_a_trace_for_every_level() -> None:
    rows = [row(), informed(0.4, 0.5, 0.6, 0.7), informed(0.41, 0.5, 0.6, 1.0, defense="b")]
    figure = dots(rows, axis="knowledge", measure="labels")
    assert figure is not None
    assert [trace["x"] for trace in figure["data"]] == [[40, 41], [50, 50], [60, 60], [70, 100]]
    assert [trace["customdata"] for trace in figure["data"]] == [[1, 2]] * 4
    assert figure["data"][3]["text"][0] == "+ defence: A3 reads 70 % (68 to 72)"
    advantages = dots(rows, axis="knowledge")
    assert advantages is not None
    assert advantages["data"][3]["x"] == [50.0, 100.0]


@pytest.mark.parametrize("axis", ["stage", "batch_size", "rounds", "knowledge"])
def test_a_condition_with_one_value_has_no_chart(axis: str) -> None:
    assert dots([row(), row(defense="b")], axis=axis) is None
    assert dots([], axis=axis) is None


def test_what_is_proven_stands_beside_what_was_read_in_the_same_row() -> None:
    rows = [row(), certified(), certified(noise=1.0, defense="DP-SGD z = 1")]
    figure = certified_figure(rows)
    assert figure is not None
    read, bound, blind = figure["data"]
    assert read["customdata"] == bound["customdata"] == [1, 2]
    assert read["x"] == [70, 70]
    assert blind["x"] == [40, 40]
    shares = [one.certificate["multiset"]["value"] for one in rows[1:] if one.certificate]
    assert bound["x"] == pytest.approx([100 * share for share in shares], abs=0.01)
    assert certified_figure([row()]) is None


def test_text_for_the_pointer_is_not_read_as_markup() -> None:
    text = hover(row(defense="<a href='javascript:x'>", worst_attack="<b>"))
    assert text.count("<b>") == 1
    assert "<a" not in text


def test_figures_are_json() -> None:
    rows: list[Row] = [certified(epsilon=float("inf")), *ROWS]
    for figure in (scatter(rows), heat_map(rows), certified_figure(rows), dots(rows, axis="stage")):
        json.dumps(figure, allow_nan=False)
