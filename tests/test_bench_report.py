"""What the laboratory writes: the same numbers in every format, pictures whose labels do not meet, refusals."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from score_cases import drawn, score, scores_of
from viapt.bench import plots
from viapt.bench.caveats import caveats, on_ranks
from viapt.bench.grid import arrange
from viapt.bench.protocol import Protocol
from viapt.bench.publish import write_report
from viapt.bench.scores import Score
from viapt.bench.statistics import Mean, compare, rank
from viapt.bench.store import FINAL, Cell, Failure
from viapt.bench.tables import Column, Table, accuracy_table, comparison_table, latex
from viapt.cli.bench_report import report
from viapt.errors import ArtifactError, ConfigError
from viapt.report.plots import Point, accuracy_against_parameters, running_best

NAN = float("nan")
NASTY = "a_b|<i> & 50 %, $x$ {y}"


class Cells(HTMLParser):
    """Tables and pictures of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.alts: list[str] = []
        self.tags: set[str] = set()
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        assert "href" not in values and values.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        if tag == "img":
            self.alts.append(values["alt"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


# Tables


@pytest.fixture
def gaps():
    """`whole` has all; `short` lacks a task; `thin` lacks seeds."""
    return arrange(
        scores_of(
            {
                "whole": {"x": [0.5, 0.6, 0.7], "y": [0.9, 0.9, 0.9]},
                "short": {"x": [0.4, 0.4, 0.4]},
                "thin": {"x": [0.8, NAN, NAN], "y": [0.1, NAN, 0.3]},
            }
        )
    )


def test_means_over_fewer_tasks_say_so_in_their_name(gaps) -> None:
    table = accuracy_table(gaps)
    assert [column.heading for column in table.columns] == [
        "method", "x", "y", "mean of all 2 tasks", "mean of the 1 of 2 tasks that all have"
    ]  # fmt: skip
    assert table.shown == [
        ["thin", "80.0 (1 seed)", "20.0 ± 127.1 (2 seeds)", "50.0 (1 complete seed)", "80.0 (1 complete seed)"],
        ["whole", "60.0 ± 24.8", "90.0 ± 0.0", "75.0 ± 12.4", "60.0 ± 24.8"],
        ["short", "40.0 ± 0.0", "-", "-", "40.0 ± 0.0"],
    ]
    full = accuracy_table(arrange(drawn(3, 4)))
    assert full.columns[-1].heading == "mean of all 4 tasks"


def test_comparison_says_its_pairs(gaps) -> None:
    table = comparison_table(compare(gaps, "whole"), "whole", gaps)
    short, thin = sorted(table.shown)
    assert short[:4] == ["short", "1", "-20.0 ± 24.8", "0 / 0 / 3"]
    assert thin[:4] == ["thin", "2", "-20.0 (1 complete seed)", "1 / 0 / 2"]
    assert short[-1] == "exact / exact"


def test_every_format_has_the_same_numbers(tmp_path) -> None:
    scores = [replace(s, method=s.method.replace("method-1", NASTY)) for s in drawn(3, 4)]
    md, html = write_report(scores, tmp_path, "method-0", {"command": NASTY, "seeds": [0, 1]})
    table = accuracy_table(arrange(scores))
    page = Cells(html.read_text(encoding="utf-8"))
    for row in table.shown:
        assert row in page.rows
    assert ["command", NASTY] in page.rows and ["seeds", "[0, 1]"] in page.rows and "i" not in page.tags
    markdown = [re.split(r"(?<!\\)\|", line)[1:-1] for line in md.read_text().splitlines() if line.startswith("|")]
    cells = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in markdown]
    tex = (tmp_path / "tables" / "accuracy.tex").read_text()
    rows = list(csv.reader(io.StringIO((tmp_path / "tables" / "accuracy.csv").read_text())))
    assert rows[0][:4] == ["method", "task-0", "task-0: half interval", "task-0: seeds"]
    for row, shown, values in zip(table.rows, table.shown, rows[1:], strict=True):
        assert shown in cells
        assert " & ".join(map(latex, shown)) + r" \\" in tex
        mean = row[1]
        assert isinstance(mean, Mean)
        assert values[0] == row[0] and [float(v) for v in values[1:4]] == [mean.value, mean.half, mean.count]


def test_tables_of_a_markdown_report_are_whole(tmp_path) -> None:
    md, _ = write_report(drawn(4, 3), tmp_path, "method-0")
    text = md.read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 4 + 1
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    linked = re.findall(r"\]\((pictures/[^)]+)\)", text)
    assert sorted(linked) == sorted(f"pictures/{p.name}" for p in (tmp_path / "pictures").iterdir())


def test_scores_are_written_whole(tmp_path) -> None:
    scores = drawn(2, 2, 2)
    write_report(scores, tmp_path, "method-1")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert rows == [{key: str(value) for key, value in asdict(s).items()} for s in scores]


def test_cells_by_kind() -> None:
    shown = [
        Column("", kind).shown(value)
        for kind, value in [
            ("p", 0.00001), ("p", 0.03125), ("count", 1234567), ("rank", 1.125), ("percent", 0.5), ("points", 0.012),
            ("text", None), ("number", 3.14159),
        ]
    ]  # fmt: skip
    assert shown == ["< 0.0001", "0.0312", "1,234,567", "1.12", "50.0", "+1.2", "-", "3.1"]


@given(st.text())
def test_latex_has_no_live_characters(text: str) -> None:
    escaped = latex(text)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\$\\(pm|times)\$|\\[&%$#_{}]", "", escaped)
    assert not set(bare) & set("\\&%$#_{}~^") and "\n" not in escaped


def test_latex_tables_are_set_with_their_rules() -> None:
    table = Table("t", "A & B", "50 %", [Column("m"), Column("p", "p")], [["x_1", 0.5]])
    lines = table.latex().splitlines()
    assert lines[2] == r"\caption{A \& B. 50 \%}" and lines[4] == r"\begin{tabular}{lr}"
    assert lines[5:10] == [r"\toprule", r"m & p \\", r"\midrule", r"x\_1 & 0.5000 \\", r"\bottomrule"]


# Caveats


def test_gaps_few_seeds_and_equal_values_are_told(gaps) -> None:
    told = " ".join([*caveats(gaps, [compare(gaps, "whole")]), *on_ranks(gaps, rank(gaps))])
    assert "No score for short: y." in told
    assert "2 cells have fewer seeds than 3" in told
    assert "± 0.0" in told
    assert "no average ranks" in told and "3 methods and 1 such task" in told
    assert "Over tasks, fewer than six pairs differ for short; thin" in told


def test_families_too_large_for_the_tasks_are_told() -> None:
    grid = arrange(drawn(8, 7))
    told = " ".join([*caveats(grid, [compare(grid, "method-0")]), *on_ranks(grid, rank(grid))])
    assert "Over tasks, no p can fall below 0.016, and corrected for 7 comparisons none can fall below 0.11" in told
    assert "Over runs" not in told  # 35 pairs are enough
    grid = arrange(drawn(4, 7))
    told = " ".join([*caveats(grid, [compare(grid, "method-0")]), *on_ranks(grid, rank(grid))])
    assert "Over tasks" not in told  # three comparisons: 3/64 < 0.05


def test_each_family_is_corrected_by_itself() -> None:
    """Seven comparisons over eight tasks cannot show anything, three can."""
    large, small = arrange(drawn(8, 7)), arrange(drawn(4, 7))
    families = [compare(grid, "method-0") for grid in (large, small)]
    told = " ".join(caveats(large, families))
    assert "Each of the 2 tables" in told and "within each table (3 to 7 comparisons)" in told and "10 comp" not in told
    assert "Over tasks" not in told
    told = " ".join(caveats(large, [families[0], families[0]]))
    assert "(7 comparisons)" in told and "corrected for 7 comparisons none can fall below 0.11" in told


def test_what_equal_methods_and_two_methods_lack_is_told() -> None:
    equal = arrange([score(m, t, s, 0.5) for m, t, s in itertools.product("abc", "xyz", range(2))])
    told = " ".join([*caveats(equal, [compare(equal, "a")]), *on_ranks(equal, rank(equal))])
    assert "Equal to the reference in every run (p = 1 by definition): b, c." in told
    assert "average ranks are not to be told apart" in told and "12 pairs of runs have no difference" in told
    two = arrange(drawn(2, 3, seeds=1))
    told = " ".join([*caveats(two, [compare(two, "method-0")]), *on_ranks(two, rank(two))])
    assert "one seed" in told and "Friedman's test needs three methods" in told and "larger than any difference" in told


def test_mixed_metrics_are_told() -> None:
    scores = drawn(2, 2, 2)
    mixed = [replace(s, metric="mean_per_class_accuracy") if s.task == "task-1" else s for s in scores]
    grid = arrange(mixed)
    assert any("means over tasks mix them" in text for text in caveats(grid, []))
    assert "accuracy or mean per class accuracy" in accuracy_table(grid).caption.lower()


# Pictures


LONG = "viapt(kept_dim=adaptive, num_prompts=50, num_instance_prompts=10, shared=False, kernel={})"


def boxes(figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """What every piece of text that is drawn takes, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn = set()
    draw = Text.draw

    def note(text, renderer, *rest, **more):
        drawn.add(text)
        return draw(text, renderer, *rest, **more)

    canvas = FigureCanvasAgg(figure)
    with patch.object(Text, "draw", note):
        canvas.draw()
    shown = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer()).extents) for text in shown]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, beside their PNG."""
    import viapt.report.plots

    seen: list = []
    png = viapt.report.plots.png

    def keep(figure) -> bytes:
        seen.append(figure)
        return png(figure)

    for module in (viapt.report.plots, plots):
        monkeypatch.setattr(module, "png", keep)
    return seen


def check_labels(figure) -> None:
    """None outside, and no two on each other."""
    width, height = figure.get_size_inches() * figure.dpi
    found = boxes(figure)
    for text, (left, bottom, right, top) in found:
        assert left >= -1 and bottom >= -1 and right <= width + 1 and top <= height + 1, f"{text!r} is cut"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
        assert apart, f"{one!r} meets {other!r}"


@pytest.mark.parametrize("count", [2, 3, 8, 15])
@pytest.mark.parametrize("kind", ["short", "long", "equal"])
def test_labels_never_meet(figures, count: int, kind: str) -> None:
    names = [LONG.format(k) if kind == "long" and k % 3 else f"m{k}" for k in range(count)]
    tasks = [f"planar orientation {k}, rendered" if kind == "long" else f"t{k}" for k in range(count)]
    ranks = {name: (count + 1) / 2 if kind == "equal" else 1.0 + k for k, name in enumerate(names)}
    plots.critical_difference(ranks, 2.2, [names[k : k + 3] for k in range(count - 1)])
    plots.critical_difference(ranks, 99.0, [names])
    plots.critical_difference(ranks, 2.2, [names], differ=False)
    values = np.linspace(0.2, 1.0, count**2).reshape(count, count)
    if kind == "equal":
        values[:] = 0.7
    values[0, 1] = NAN
    plots.heat_map(values, names, tasks)
    points = {
        name: Point(0 if k == 2 else 10 ** (k % 4) * 30, value, value - 0.01, value + 0.01)
        for k, (name, value) in enumerate(zip(names, values[-1], strict=True))
    }
    accuracy_against_parameters(points, x="learnable parameters", frontier=True)
    assert len(figures) == 5
    for figure in figures:
        check_labels(figure)


def marks(figure) -> list[tuple[float, float]]:
    """Where the markers of methods stand, in pixels."""
    found = []
    for container in figure.axes[0].containers:
        line = container.lines[0]
        found += [tuple(line.get_transform().transform(line.get_xydata()[0]))]
    return found


def test_equal_points_do_not_hide_one_another_and_lone_ones_stay(figures) -> None:
    points = {f"m{k}": Point(5_000, 0.7, NAN, NAN) for k in range(6)} | {"far": Point(5_000, 0.2, 0.19, 0.21)}
    accuracy_against_parameters(points, x="parameters")
    (figure,) = figures
    figure.canvas.draw()
    *crowd, far = marks(figure)
    places = sorted(x for x, _ in crowd)
    assert np.diff(places) == pytest.approx([0.07 * figure.dpi] * 5, abs=0.1)  # half a marker
    assert far[0] == pytest.approx(figure.axes[0].transData.transform((5_000, 0))[0])
    assert np.mean([x for x, _ in crowd]) == pytest.approx(far[0], abs=0.5)


def test_frontier_by_hand() -> None:
    points = [Point(0, 0.5, NAN, NAN), Point(10, 0.4, NAN, NAN), Point(10, 0.6, NAN, NAN), Point(99, 0.6, NAN, NAN)]
    assert running_best(points) == [points[0], points[2]]


def test_bars_that_would_touch_have_lanes_of_their_own() -> None:
    ranks = {name: float(k + 1) for k, name in enumerate("abcdef")}
    assert plots.bars_in_lanes(ranks, ["ab", "bc", "de", "ef"]) == [[("a", "b"), ("d", "e")], [("b", "c"), ("e", "f")]]


def test_missing_cells_are_hatched(figures) -> None:
    plots.heat_map(np.array([[0.5, NAN], [0.6, 0.7]]), ["a", "b"], ["x", "y"])
    axes = figures[0].axes[0]
    (patch,) = [p for p in axes.patches if p.get_hatch()]
    assert (patch.get_x() + 0.5, patch.get_y() + 0.5) == (1, 0)
    assert {t.get_text() for t in axes.texts} == {"50.0", "60.0", "70.0"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[-5, NAN], [5, 0]])


# Reports


def test_pictures_have_words(tmp_path) -> None:
    _, html = write_report(drawn(3, 4), tmp_path, "method-0")
    ranks, parameters, heat = Cells(html.read_text()).alts
    assert ranks.startswith("Average ranks over 4 tasks: method-0 1.") and "Not told apart" in ranks
    assert "method-2" in parameters and "with 1,000" in parameters
    assert "table" in heat
    for path in (tmp_path / "pictures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_equal_scores_in_any_order_are_equal_files(tmp_path) -> None:
    scores = drawn(3, 3, 2)
    for name, order in (("a", scores), ("b", scores[::-1])):
        write_report(order, tmp_path / name, "method-1")
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 2 + 3 + 8 + 1
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize(("methods", "tasks", "seeds"), [(1, 1, 1), (1, 3, 2), (2, 1, 1), (3, 2, 1)])
def test_little_is_enough_for_a_report(tmp_path, methods: int, tasks: int, seeds: int) -> None:
    md, _ = write_report(drawn(methods, tasks, seeds), tmp_path, "method-0")
    assert "Accuracy by task" in md.read_text()


def test_methods_without_a_common_task(tmp_path) -> None:
    md, _ = write_report(scores_of({"a": {"x": [0.5]}, "b": {"y": [0.6]}}), tmp_path, "a")
    text = md.read_text()
    assert "No method could be compared" in text and "pictures/parameters" not in text and "| b | 0 | - |" in text


def test_methods_above_a_number_of_parameters_are_left_out(tmp_path) -> None:
    small, large = scores_of({"a": {"x": [0.5], "y": [0.5]}}), scores_of({"b": {"x": [0.65], "y": [0.65]}})
    large[1] = replace(large[1], learnable_parameters=1001)  # on one task
    md, _ = write_report([*small, *large], tmp_path, "a", max_parameters=1000)
    text = md.read_text()
    assert "learn more than 1,000 numbers: b" in text and "65.0" not in text and "50.0" in text
    assert (tmp_path / "scores.csv").read_text().count("\nb,") == 0
    md, _ = write_report([*small, *large], tmp_path, "a", max_parameters=1001)
    assert "65.0" in md.read_text() and "Left out" not in md.read_text()
    with pytest.raises(ConfigError, match=r"more than 999 .*a limit of 1,000"):
        write_report([*small, *large], tmp_path, "a", max_parameters=999)


def test_other_parts_are_left_out_and_told(tmp_path) -> None:
    scores = drawn(2, 2, 2)
    md, _ = write_report([*scores, replace(scores[0], part="val", value=0.0)], tmp_path, "method-0")
    assert "1 scores of other parts than test are left out" in md.read_text()


def test_places_that_stay_empty_are_told(tmp_path) -> None:
    scores, small = drawn(2, 2, 2), [replace(one, learnable_parameters=5) for one in drawn(1, 2, 2)]
    empty = [Failure(Cell(f"method-{m}", "task-9", 0), "too dark", "", 1) for m in (0, 1)]
    empty.append(Failure(Cell("method-0", "task-0", 0, trial=3), "of a search", "", 1))
    text = write_report(scores, tmp_path, "method-0", failures=empty)[0].read_text()
    assert "- Not measured: task-9: 2 places: too dark\n" in text and "of a search" not in text
    scores = [*small, *(one for one in scores if one.method == "method-1")]
    text = write_report(scores, tmp_path, "method-0", failures=empty, max_parameters=5)[0].read_text()
    assert "- Not measured: method-0, task-9, seed 0: too dark\n" in text


def test_missing_libraries_are_named(tmp_path, monkeypatch) -> None:
    for library in ("matplotlib", "statsmodels.stats.multitest"):
        with monkeypatch.context() as changed:
            changed.setitem(__import__("sys").modules, library, None)
            with pytest.raises(ConfigError, match=r"needs (matplotlib|statsmodels).*viapt\[bench\]"):
                write_report(drawn(2, 2, 2), tmp_path, "method-0")


# The command


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(report)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def write_records(path: Path, scores: list[Score]) -> Path:
    """Scores as `viapt bench export` writes them."""
    costs = ("learnable_parameters", "seconds", "peak_memory_mib", "key", "method", "task", "seed")
    records = [
        {"job": {}, "trial": FINAL, "val": None, "test": {s.metric: s.value}, "data_hash": "d"}
        | {"data_source": "drawn", "device": "a chip", "viapt": "0", "job_seconds": 36.0}
        | {name: getattr(s, name) for name in costs}
        for s in scores
    ]
    common = {"method": "m", "code": "a-b", "versions": {}, "device": "cpu", "split_hash": "s"}
    common |= {"training": {"selection": "best-val"}}
    protocol = Protocol(epochs=7).to_dict()
    content = {"format": 1, "protocol": protocol, "common": common, "records": records, "failures": []}
    path.write_text(json.dumps(content))
    return path


def test_command_writes_the_report(tmp_path, command) -> None:
    source = write_records(tmp_path / "scores.json", drawn(2, 3, 2))
    result = command(source, "--out", tmp_path / "out", "--reference", "method-1")
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / "out" / name) for name in ("report.md", "report.html")]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| epochs | 7 |" in text and "Compared with method-1" in text
    for words in (
        "| 12, 0.12 hours of",
        "| code | a |",
        "| a chip |",
        "drawn | d | s |",
        "--methods method-0 method-1 |",
    ):
        assert words in text.replace("\\-", "-"), words
    other = tmp_path / "other.json"
    other.write_text(source.read_text().replace("job_seconds", "hours"))
    refused = command(other, "--out", tmp_path / "none", "--reference", "method-1").exception
    assert isinstance(refused, ArtifactError) and "'job_seconds'" in str(refused)
    refused = command(source, "--out", tmp_path / "none").exception
    assert isinstance(refused, ConfigError) and "'viapt'" in str(refused) and not (tmp_path / "none").exists()
