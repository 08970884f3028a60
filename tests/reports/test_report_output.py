"""Tables as text, and what the figures show."""

import json

import pytest
from test_report import trial

from spurcor.errors import RunError, UserError
from spurcor.presentation import plots, render
from spurcor.presentation.statistics import Summary
from spurcor.presentation.tables import Interval, Seeds, Table
from spurcor.reports import drawings
from spurcor.reports.options import SHOWN_METRICS, measured
from spurcor.reports.pivot import cells, pivot
from spurcor.reports.published import entries, published
from spurcor.reports.selection import judge
from spurcor.reports.tables import Metric
from spurcor.reports.trials import with_settings

GOOD, BETTER = Summary.of([60.0, 62.0]), Summary.of([70.0, 74.0])
TABLE = Table(
    "methods",
    "Methods",
    [
        {"data set": "a_b", "method": "erm|x", "seeds": Seeds(2, 3), "worst": GOOD, "none": None},
        {"data set": "a_b", "method": "50% & #1", "seeds": Seeds(3, 3), "worst": BETTER,
         "interval": Interval(BETTER), "images": 12345, "p": 0.0625},
    ],
)  # fmt: skip


def test_markdown_can_be_pasted():
    lines = [
        [cell.strip() for cell in line.split(" | ")] for line in render.markdown(TABLE).split("\n")
    ]
    assert lines[0] == ["| data set", "method", "seeds", "worst", "interval", "images", "p |"]
    assert lines[2] == ["| a_b", "erm\\|x", "2 of 3", "61.0 ± 1.4", "-", "-", "- |"]
    assert lines[3] == [
        "| a_b", "50% & #1", "3", "72.0 ± 2.8", "[46.6, 97.4]", "12,345", "0.0625 |",
    ]  # fmt: skip


def test_latex_is_escaped_and_the_best_is_bold():
    text = render.latex(TABLE)
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert r"a\_b" in text
    assert r"50\% \& \#1" in text
    assert r"\textbf{72.0 $\pm$ 2.8}" in text
    assert text.count(r"\textbf{") == 1
    assert not [mark for mark in (*render.LATEX_COMMANDS, "\x01") if mark in text]


def test_the_oracle_is_never_bold():
    records = [
        {"data set": "a", "criterion": "val/worst", "worst": GOOD},
        {"data set": "a", "criterion": "oracle (reads test)", "worst": BETTER},
        {"data set": "b", "criterion": "oracle (reads test)", "worst": BETTER},
    ]
    text = render.latex(Table("criteria", "", records))
    assert r"\textbf{61.0 $\pm$ 1.4}" in text
    assert text.count(r"\textbf{") == 1


def test_csv_keeps_full_precision():
    header, first, second = render.csv_text(TABLE).splitlines()
    assert header.startswith("data set,method,seeds,seeds_expected,worst_mean,worst_std,worst_low")
    assert first.startswith("a_b,erm|x,2,3,61.0,1.4142135623730951,")
    assert second.endswith(",12345,0.0625")


# --- published figures ----------------------------------------------------------------------------


def test_every_published_figure_is_whole():
    for entry in entries():
        optional = {"when"} & set(entry)
        assert set(entry) == {
            "dataset", "method", "metric", "mean", "std", "source", "note", *optional,
        }  # fmt: skip
        assert 0 <= entry["mean"] <= 100
        name = entry["metric"].rpartition("/")[2]
        assert name in SHOWN_METRICS or name.startswith("selective_")
        assert entry["source"]


def test_published_figures_stand_beside_ours_where_options_match():
    def shown(**options):
        rows = [{"phase": None, "epoch": None, "val/worst": 0.5, "test/worst": 0.9}]
        made = trial(rows=rows, dataset="waterbirds", repair="x", **options)
        return published(judge(with_settings([made]), "val/worst")).records

    found = shown(**{"dfr.split": "val"})
    assert ("92.9 ± 0.2", "secondary source") in [(one["published"], one["note"]) for one in found]
    assert {one["ours"].mean for one in found if one["metric"] == "worst"} == {90.0}
    assert shown(**{"dfr.split": "train"}) == []


def test_a_published_figure_of_a_further_test_set_stands_beside_that_set():
    rows = [
        {"phase": "erm", "epoch": 1, "val/worst": 0.5, "test/worst": 0.9, "opposite/worst": 0.2}
    ]
    options = {"dataset.square_size": 5}
    made = trial(rows=rows, dataset="mnist_cues", method="erm", **options)
    (found,) = published(judge(with_settings([made]), "val/worst")).records
    assert found["metric"] == "opposite/worst"
    assert found["ours"].mean == 20.0


def test_a_grid_of_published_figures_has_one_for_each_of_its_places():
    found = {
        (one["method"], *sorted(one["when"].items())): one["mean"]
        for one in entries()
        if one["dataset"] == "dominoes"
    }
    assert len(found) == 11 + 36 + 6 + 6 + 36 + 36
    size, strength = ("dataset.pool_size", 1000), ("dataset.strength", 1.0)
    assert found["scale", size, strength, ("method.gate", "linear")] == 58.85
    assert found["scale", size, strength, ("method.gate", "step")] == 57.73
    assert found["erm_target", size] == 51.60
    assert found["erm", size, strength] == 7.23
    assert ("erm", size, ("dataset.strength", 0.95)) not in found  # none was published


def test_published_figures_stand_beside_ours_in_a_table_that_asks_for_them():
    def table(known):
        options = {"dataset.strength": 1.0, "dataset.pool_size": 1000}
        row = {"phase": "x", "epoch": 1, "val/conflicting": 0.5, "test/conflicting": 0.6}
        made = [
            trial(f"r{method}{gate}", rows=[row], dataset="dominoes", method=method, **options,
                  **({"method.gate": gate} if gate else {}))
            for method, gate in (("iw", None), ("scale", "linear"), ("scale", "step"))
        ]  # fmt: skip
        keys = ["method", "method.gate"], ["dataset.pool_size"]
        conflicting = [Metric("conflicting", "test/conflicting")]
        return pivot(with_settings(made), *keys, conflicting, "val/conflicting", known)

    records = table(entries()).records
    assert [one["pool_size=1000 published"] for one in records] == [None, "58.9", "57.7"]
    assert {one["pool_size=1000"].mean for one in records} == {60.0}
    elsewhere = [{**one, "metric": "worst"} for one in entries()]
    assert table(elsewhere).columns == table([]).columns
    none = [one for one in entries() if one["dataset"] != "dominoes"]
    assert table(none).columns == table([]).columns == ["method", "gate", "pool_size=1000"]


# --- figures --------------------------------------------------------------------------------------


def candidates(number=2, seeds=3, epochs=4):
    found = []
    for method in range(number):
        made = [
            trial("r1", seed, [
                {"phase": "erm", "epoch": epoch, "val/worst": epoch / 10, "test/worst": 0.1 * seed,
                 "test/average": 0.8, "test/group/a/b": (seed + epoch) / 10}
                for epoch in range(1, epochs + 1)
            ], method=f"m{method}")
            for seed in range(seeds)
        ]  # fmt: skip
        found += judge(with_settings(made), "val/worst")
    return found


def test_learning_curves_show_mean_and_range_over_seeds():
    drawing = drawings.learning_curves(candidates(), "learning_curves_birds", "birds")
    assert [panel.title for panel in drawing.panels] == ["m0", "m1"]
    (series,) = drawing.panels[0].series
    assert (series.label, list(series.x)) == ("a/b", [1, 2, 3, 4])
    assert series.y == pytest.approx([20, 30, 40, 50])
    assert series.band[0] == pytest.approx([10, 20, 30, 40])
    assert series.band[1] == pytest.approx([30, 40, 50, 60])
    assert drawing.panels[0].mark == 4


def test_many_groups_are_summarised_and_many_methods_capped():
    found = candidates(number=10)
    for row in [row for one in found for pick in one.picks for row in pick.trial.rows]:
        row |= {f"test/group/{group}": 0.5 for group in range(9)}
    drawing = drawings.learning_curves(found, "learning_curves_birds", "birds")
    assert [one.label for one in drawing.panels[0].series] == list(drawings.SUMMARIES)
    assert len(drawing.panels) == 8
    assert "The figure shows the first 8 of 10 methods." in drawing.notes
    assert len(drawings.worst_against_average(found).panels[0].series) == 8


def test_points_are_means_with_their_deviations():
    (point, _) = drawings.worst_against_average(candidates()).panels[0].series
    assert (point.x, point.y) == (pytest.approx([80]), pytest.approx([10]))
    assert point.y_bars == pytest.approx([10])
    assert not point.line


def test_a_curve_has_a_point_per_value_in_their_order():
    made = [
        trial(f"r{layer}", 0, [{"phase": "erm", "epoch": 1, "val/worst": 0.5, "test/worst": test}],
              method=method, **{"dfr.layer": layer})
        for method, layers in (("erm", {"b": 0.2}), ("iw", {"a": 0.3, "b": 0.4}))
        for layer, test in layers.items()
    ]  # fmt: skip
    _, found = cells(made, ["method"], ["dfr.layer"], "val/worst")
    (panel,) = drawings.curve(found, "dfr.layer", Metric("worst", "test/worst")).panels
    assert panel.ticks == ["b", "a"]
    assert [(one.label, one.x, one.y) for one in panel.series] == [
        ("erm", [0], pytest.approx([20])), ("iw", [0, 1], pytest.approx([40, 30])),
    ]  # fmt: skip


def test_quantities_of_analyses_are_lines_and_their_settings_panels():
    names = [f"gaps/{term}/b/y-b/x/train" for term in ("uniform", "correlation")]
    made = [
        trial(f"{method}{rho}", 0,
              [{"phase": "erm", "epoch": 1, "val/worst": 0.5, "test/worst": 0.5,
                names[0]: -rho, names[1]: 2 * rho}],
              method=method, **{"dataset.rho": rho})
        for method in ("erm", "iw") for rho in (0.8, 0.4)
    ]  # fmt: skip
    _, found = cells(made, ["method"], ["dataset.rho"], "last")
    drawing = drawings.quantities(found, "dataset.rho", measured(names, made))
    assert drawing.title == "gaps b/y-b/x/train over dataset.rho"
    assert drawing.y == "gaps"
    assert [panel.title for panel in drawing.panels] == ["erm", "iw"]
    for panel in drawing.panels:
        assert [(one.label, one.x, one.y) for one in panel.series] == [
            ("uniform", [0.4, 0.8], pytest.approx([-0.4, -0.8])),  # as they are, not in per cent
            ("correlation", [0.4, 0.8], pytest.approx([0.8, 1.6])),
        ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean gaps/uniform/b/y-b/x/train"):
        measured(["gaps/uniform/b/y-b/z/train"], made)
    with pytest.raises(UserError, match="is not in this report"):
        measured(["val/worst"], made)  # no analysis: what selects is no quantity


def test_a_legend_is_below_everything_and_nothing_overlaps():
    from dataclasses import asdict

    import matplotlib.backends.backend_agg
    import matplotlib.figure

    with matplotlib.rc_context(plots.STYLE):
        for number in (1, 3, 6):
            named = drawings.learning_curves(candidates(number), "x", "birds")
            figure = plots.draw(json.loads(json.dumps(asdict(named))))
            renderer = matplotlib.backends.backend_agg.FigureCanvasAgg(figure).get_renderer()
            shown = [axes for axes in figure.axes if axes.get_visible()]
            boxes = [axes.get_tightbbox(renderer) for axes in shown]
            (legend,) = figure.legends
            below = legend.get_window_extent(renderer)
            assert all(below.y1 <= box.y0 + 1 for box in boxes)
            assert below.y0 >= 0
            assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
            for index, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_figures_that_cannot_be_drawn_are_an_error_in_a_sentence(tmp_path):
    drawing = drawings.learning_curves(candidates(), "x", "birds")
    with plots.Artist() as artist:
        artist.draw(tmp_path / "nowhere", [drawing])
        with pytest.raises(RunError, match=r"figures could not be drawn: .*nowhere"):
            artist.finish()
