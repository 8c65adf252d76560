"""Figures as a paper prints them: what SVG and CSV hold is what the run holds, and a sheet fits its column."""

from __future__ import annotations

import re
import struct
import sys
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import make_run

from inrank_monitor import open_run, paper_figure
from inrank_monitor.cli import main
from inrank_monitor.figures import (
    empty_figure,
    explained_ratio_curve,
    loss_curve,
    mark_events_on_heatmap,
    paper_figure_bytes,
    rank_heatmap,
    run_comparison,
    save_figure,
)

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["h.0.attn.c_attn.weight[q]", "h.0.mlp.c_fc.weight"]
KINDS = ("rank-evolution", "spectrum-evolution", "spectrum-density", "explained-ratio", "ratio-evolution", "loss")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"a-run-with-a-long-name-{seed}", seed=seed, steps=range(0, 120, 6)) for seed in (1, 2)]


def paths(file: Path) -> dict[str, np.ndarray]:
    """The lines of an SVG by their ids: points (n, 2)."""
    found = {}
    for group in ElementTree.parse(file).iter(f"{SVG}g"):
        if group.get("id", "").startswith("panel-"):
            text = group.find(f"{SVG}path").get("d")  # type: ignore[union-attr]
            found[group.get("id", "")] = np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", str(text)), dtype=float)
    return found


def labels(file: Path, axis: str) -> list[list[tuple[float, str]]]:
    """Of each panel the places of the ticks of an axis (`xtick`) and their labels."""
    panels = []
    root = ElementTree.parse(file)
    for panel in (g for g in root.iter(f"{SVG}g") if re.fullmatch(r"axes_\d+|\d+", g.get("id", ""))):
        ticks = [g for g in panel.iter(f"{SVG}g") if g.get("id", "").startswith(f"{axis}_")]
        place = "x" if axis == "xtick" else "y"
        found = [(next(g.iter(f"{SVG}use"), None), next(g.iter(f"{SVG}text"), None)) for g in ticks]
        panels.append(
            [(float(use.get(place, 0)), str(text.text)) for use, text in found if use is not None and text is not None]
        )
    return [ticks for ticks in panels if ticks]


def fit(drawn: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The axis that takes the true numbers to the drawn ones; it fails where none does, to a fifth of a point."""
    line = np.polyfit(true, drawn, 1)
    np.testing.assert_allclose(np.polyval(line, true), drawn, atol=0.2)
    return line


@pytest.mark.parametrize("log", [False, True])
def test_the_lines_of_an_svg_are_the_stored_spectra_on_one_y_axis(runs: list[Path], tmp_path: Path, log: bool) -> None:
    svg = tmp_path / "figure.svg"
    paper_figure(3, runs, svg, matrices=NAMES, log=log, log_steps=log)
    drawn, panel, true, seen = paths(svg), 0, [], []
    for run in map(open_run, runs):
        for name in NAMES:
            values, panel = run.singular_values(name), panel + 1
            values = values[values.index > 0] if log else values
            lines = {key: line for key, line in drawn.items() if key.startswith(f"panel-{panel}-")}
            assert len(lines) == values.shape[1]
            for key, line in lines.items():
                number = int(key.split("σ")[-1])
                np.testing.assert_array_equal(len(line), len(values))
                fit(line[:, 0], np.log10(values.index) if log else values.index.to_numpy())
                true.append(values[number].to_numpy())
                seen.append(line[:, 1])
    heights = np.concatenate(true)
    axis = fit(np.concatenate(seen), np.log10(heights) if log else heights)
    for place, text in labels(svg, "ytick")[0]:
        value = float(text.replace("−", "-"))
        assert np.polyval(axis, np.log10(value) if log else value) == pytest.approx(place, abs=0.2)


def test_a_csv_holds_every_number_that_is_drawn(runs: list[Path], tmp_path: Path) -> None:
    run = open_run(runs[0])
    paper_figure("5", runs[0], tmp_path / "ranks.csv")
    paper_figure("spectrum-evolution", runs[0], tmp_path / "spectra.csv", matrices=NAMES[0])
    paper_figure("loss", runs, tmp_path / "loss.csv")
    ranks = pd.read_csv(tmp_path / "ranks.csv")
    for name, rows in run.measurements.groupby("matrix", observed=True):
        mine = ranks[ranks["series"] == name]
        assert mine["step"].tolist() == rows["step"].tolist()
        assert mine["intrinsic rank"].tolist() == rows["intrinsic_rank"].tolist()
        assert mine["null rank"].tolist() == rows["null_rank"].tolist()
    spectra = pd.read_csv(tmp_path / "spectra.csv")
    table = spectra.pivot(index="step", columns="series", values="singular value σ of ΔW")
    stored = run.singular_values(NAMES[0])
    np.testing.assert_allclose(table[[f"σ{i}" for i in stored.columns]], stored, rtol=1e-6)
    loss = pd.read_csv(tmp_path / "loss.csv")
    assert sorted(loss["panel"].unique()) == sorted(path.name for path in runs)
    logged = run.scalars[run.scalars["name"] == "loss"]
    mine = loss[(loss["panel"] == runs[0].name) & (loss["series"] == "loss")]
    np.testing.assert_allclose(mine.iloc[:, -1], logged["value"], rtol=1e-6)


def test_series_that_have_axes_of_their_own_do_not_share_the_name_of_one(tmp_path: Path) -> None:
    steps = np.repeat(np.arange(1, 9), 2)
    scalars = pd.DataFrame({"step": steps, "time": 0.0, "name": ["loss", "lr"] * 8, "value": 1.0 / steps})
    table = pd.read_csv(save_figure(loss_curve(scalars), tmp_path / "loss.csv"))
    assert list(table.columns) == ["series", "step", "value"]
    assert set(table["series"]) == {"loss", "lr"}


@pytest.mark.parametrize(
    ("kind", "width", "inches"), [*zip(KINDS, ("single", "double", 5) * 2, (3.25, 6.75, 5.0) * 2, strict=True)]
)
def test_files_are_whole_and_as_wide_as_asked_and_their_text_is_near_black(
    runs: list[Path], tmp_path: Path, kind: str, width: str | float, inches: float
) -> None:
    files = paper_figure(kind, runs[0], *(tmp_path / f"f.{kind}" for kind in ("pdf", "svg", "png")), width=width)
    pdf, svg, png = (file.read_bytes() for file in files)
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(72 * inches, abs=0.5)
    assert b"/Subtype /Type0" in pdf
    assert b"/Type3" not in pdf  # whole letters, which publishers ask for
    root = ElementTree.fromstring(svg)
    assert root.get("width") == f"{72 * inches:g}pt"
    words = list(root.iter(f"{SVG}text"))
    assert len(words) > 8
    assert {re.findall(r"fill: (#\w+)", str(word.get("style")))[0] for word in words} == {"#111111"}
    assert struct.unpack(">I", png[16:20])[0] == round(300 * inches)
    assert png.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("several", [False, True])
def test_no_words_lie_on_others_or_leave_the_sheet(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, several: bool
) -> None:
    from matplotlib.text import Text

    seen: dict[int, tuple[str, Any]] = {}
    draw = Text.draw

    def noted(text: Any, renderer: Any, *more: Any, **options: Any) -> None:
        draw(text, renderer, *more, **options)
        if text.get_visible() and text.get_text().strip():
            seen[id(text)] = text.get_text(), text.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", noted)
    noise = kind in ("spectrum-evolution", "spectrum-density", "explained-ratio")
    of = None if kind == "loss" else NAMES if several else NAMES[:1]
    (png,) = paper_figure(kind, runs if several else runs[0], tmp_path / "f.png", matrices=of, noise=noise)
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    boxes = list(seen.values())
    assert len(boxes) > 8
    for (one, box), (other, second) in combinations(boxes, 2):
        wide = min(box.x1, second.x1) - max(box.x0, second.x0)
        high = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert wide < 3 or high < 3, f"{one!r} lies on {other!r}"
    for words, box in boxes:
        assert box.x0 >= -1, f"{words!r} leaves the sheet"
        assert box.y0 >= -1, f"{words!r} leaves the sheet"
        assert box.x1 <= width + 1, f"{words!r} leaves the sheet"
        assert box.y1 <= height + 1, f"{words!r} leaves the sheet"


def test_a_colour_means_one_matrix_in_all_panels(runs: list[Path], tmp_path: Path) -> None:
    (svg,) = paper_figure("rank-evolution", runs, tmp_path / "f.svg", matrices=NAMES)
    colours: dict[str, set[str]] = {}
    for group in ElementTree.parse(svg).iter(f"{SVG}g"):
        if found := re.fullmatch(r"panel-\d+-\d+-(h-0-.*)", group.get("id", "")):
            style = str(group.find(f"{SVG}path").get("style"))  # type: ignore[union-attr]
            colours.setdefault(found[1], set()).update(re.findall(r"stroke: (#\w+)", style))
    assert len(colours) == len(NAMES)
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(NAMES)


def test_the_ranks_of_several_panels_stand_at_their_rings(runs: list[Path], tmp_path: Path) -> None:
    (svg,) = paper_figure("explained-ratio", runs, tmp_path / "f.svg", matrices=NAMES[:1], steps=[114])
    words = ["".join(word.itertext()) for word in ElementTree.parse(svg).iter(f"{SVG}text")]
    for run in map(open_run, runs):
        rows = run.measurements[(run.measurements["matrix"] == NAMES[0]) & (run.measurements["step"] == 114)]
        assert str(int(rows["intrinsic_rank"].iloc[0])) in words
    assert words.count("step 114") == 1


def test_heat_maps_comparisons_and_empty_figures_are_drawn_too(runs: list[Path]) -> None:
    both = {path.name: open_run(path) for path in runs}
    run = both[runs[0].name]
    heat = mark_events_on_heatmap(rank_heatmap(run.measurements, relative_to_null=True), run.events)
    figures = [
        heat,
        run_comparison({name: one.measurements for name, one in both.items()}),
        empty_figure("nothing yet"),
    ]
    figures.append(explained_ratio_curve(run.singular_values(NAMES[0]), null=None))
    for figure in figures:
        root = ElementTree.fromstring(paper_figure_bytes(figure, "svg"))
        assert list(root.iter(f"{SVG}text"))
    words = [str(one.text) for one in ElementTree.fromstring(paper_figure_bytes(heat, "svg")).iter(f"{SVG}text")]
    assert {"0", "114"} <= set(words)  # steps at the ticks, and not what they are numbered by
    assert sum("c_attn" in word for word in words) == 3


def test_a_csv_needs_no_matplotlib_and_the_others_name_the_extra(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'inrank-monitor\[figures\]'"):
        paper_figure("1", runs[0], tmp_path / "f.csv", tmp_path / "f.pdf")
    assert not list(tmp_path.iterdir())
    assert main(["figure", str(runs[0]), "--figure", "1", "--output", str(tmp_path / "f.svg")]) == 2
    assert "inrank-monitor[figures]" in capsys.readouterr().err
    paper_figure("1", runs[0], tmp_path / "f.csv")
    assert len(pd.read_csv(tmp_path / "f.csv")) > 100


@pytest.mark.parametrize(
    ("figure", "named", "options"),
    [
        ("2", "figure", {}),
        ("ranks", "figure", {}),
        ("loss", "matrices", {"matrices": "*"}),
        ("loss", "steps", {"steps": [6]}),
        ("rank-evolution", "noise", {"noise": True}),
        ("rank-evolution", "log has", {"log": True}),
        ("spectrum-density", "quantity", {"quantity": "stable_rank"}),
        ("explained-ratio", "log_steps", {"log_steps": True}),
        ("rank-evolution", "width", {"width": "tripel"}),
        ("rank-evolution", "width", {"width": 0.2}),
        ("rank-evolution", "columns", {"columns": 0}),
        ("rank-evolution", "titles", {"titles": ["one", "two"]}),
        ("rank-evolution", "column", {"quantity": "rnak"}),
        ("spectrum-density", "steps must be measured", {"steps": [7]}),
        ("spectrum-evolution", "no such matrix", {"matrices": "zz*"}),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(
    runs: list[Path], tmp_path: Path, figure: str, named: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=named):
        paper_figure(figure, runs[0], tmp_path / "f.svg", tmp_path / "f.csv", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_the_endings_say_and_leaves_the_users_settings(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 23}):
        files = [str(tmp_path / f"f.{kind}") for kind in ("svg", "PDF", "png", "csv")]
        given = [part for file in files for part in ("--output", file)]
        assert main(["figure", *map(str, runs), "--figure", "15", "--matrices", NAMES[1], "--noise", *given]) == 0
        assert mpl.rcParams["font.size"] == 23
    assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in files)
    assert all(Path(file).stat().st_size > 1000 for file in files)
    assert "edge of noise" in Path(files[0]).read_text(encoding="utf-8")
    assert main(["figure", str(runs[0]), "--figure", "15", "--output", str(tmp_path / "f.txt")]) == 2
    error = capsys.readouterr().err
    assert ".pdf, .svg, .png or .csv" in error
    assert "f.txt" in error


def test_runs_of_other_matrices_have_panels_of_their_own_unless_names_are_asked_for(
    runs: list[Path], tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", names=["rnn.weight_hh_l0", "rnn.weight_ih_l0"])
    (csv,) = paper_figure("spectrum-evolution", [runs[0], other], tmp_path / "f.csv")
    assert {panel.split(":")[0] for panel in pd.read_csv(csv)["panel"].unique()} == {runs[0].name, "other"}
    with pytest.raises(ValueError, match="other has no such matrix"):
        paper_figure("spectrum-evolution", [runs[0], other], tmp_path / "g.csv", matrices=NAMES)
