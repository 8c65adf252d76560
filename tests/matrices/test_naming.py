"""What a table prints can be typed back: exactly, as printed, as a pattern; what is unclear names its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from inrank_monitor import attach, find_matrices, open_run
from inrank_monitor.advice import advice_text, advise
from inrank_monitor.figures import rank_evolution, rank_heatmap, run_comparison, short_names
from inrank_monitor.naming import find_name, matching, select_names
from inrank_monitor.report import report_table
from inrank_monitor.runs import Run, SharedRun

GPT = [
    f"transformer.h.{layer}.{name}"
    for layer in range(12)
    for name in ("attn.c_attn.weight[q]", "attn.c_attn.weight[k]", "attn.c_proj.weight", "mlp.c_fc.weight")
]
LONG = [f"model.decoder.{'very_long_module_name.' * 4}layers.{i}.self_attn.{x}.weight" for i in range(9) for x in "qk"]
ODD = ["naïve.weight", "größe.weight[α]", "a b.weight", "x[0].weight", "über.0.weight", "tab\tname.weight"]
MIXED = ["encoder.weight", "decoder.weight", "decoder.decoder.weight", "head.weight[default]", "weight"]


@pytest.mark.parametrize("names", [GPT, LONG, ODD, MIXED], ids=["gpt", "long", "odd", "mixed"])
@pytest.mark.parametrize("ellipsis", ["…", "..."])
@pytest.mark.parametrize("width", [12, 20, 32, 44, 60, 200])
def test_every_label_of_a_table_is_its_name(names: list[str], width: int, ellipsis: str) -> None:
    for name, label in short_names(names, width, ellipsis).items():
        assert find_name(label, names) == name
        assert select_names(label, names) == [name]


@pytest.mark.parametrize("names", [GPT, LONG, ODD, MIXED], ids=["gpt", "long", "odd", "mixed"])
def test_every_full_name_is_itself(names: list[str]) -> None:
    assert [find_name(name, names) for name in names] == names


def test_an_exact_name_goes_before_a_printed_one_and_that_before_the_end_of_another() -> None:
    assert find_name("decoder", MIXED) == "decoder.weight"
    assert find_name("decoder.decoder", MIXED) == "decoder.decoder.weight"
    assert find_name("weight", MIXED) == "weight"
    assert find_name("h.3.mlp.c_fc", GPT) == "transformer.h.3.mlp.c_fc.weight"
    assert find_name("3.attn.c_attn[k]", GPT) == "transformer.h.3.attn.c_attn.weight[k]"


@pytest.mark.parametrize("typed", ["naïve", "nai\u0308ve", "na?ve", "na\\xefve", "größe[α]", "gr??e[?]", "tab?name"])
def test_letters_are_taken_as_keyboards_and_terminals_write_them(typed: str) -> None:
    assert find_name(typed, ODD) in ("naïve.weight", "größe.weight[α]", "tab\tname.weight")


def test_globs_and_weights_mean_all_that_they_match() -> None:
    assert select_names("*.0.attn.c_attn*", GPT) == GPT[:2]
    assert select_names("transformer.h.0.attn.c_attn", GPT) == GPT[:2]
    assert select_names("h.0.attn.c_attn.weight", GPT) == GPT[:2]
    assert len(select_names("*.c_attn", GPT)) == 24  # layers, where no name ends so
    assert len(select_names("*[q]", GPT)) == 12
    assert select_names("*.c_f?", GPT) == [name for name in GPT if "c_fc" in name]


@pytest.mark.parametrize(
    ("typed", "names", "message"),
    [
        ("c_fc", GPT, r"'c_fc' could be transformer\.h\.0\.mlp\.c_fc\.weight, .* and 8 more"),
        ("h.0.attn.c_attn", GPT, r"could be transformer\.h\.0\.attn\.c_attn\.weight\[q\], .*\[k\]"),
        ("*.c_fc", GPT, "could be"),
        ("h.0.mpl.c_fc", GPT, r"no matrix 'h\.0\.mpl\.c_fc'; there are transformer\.h\.0\.mlp\.c_fc\.weight"),
        ("decodr", MIXED, r"no matrix 'decodr'; there are decoder\.weight"),
        ("x", ["only.weight"], r"no matrix 'x'; there is only\.weight"),
        ("x", [], "there is none at all"),
    ],
)
def test_what_is_no_one_matrix_is_refused_with_its_neighbours(typed: str, names: list[str], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        find_name(typed, names)


def test_a_text_without_wildcards_never_means_several_weights() -> None:
    with pytest.raises(LookupError, match=r"'\*c_fc\*' means all of them"):
        select_names("c_fc", GPT)
    assert matching("nothing", GPT) == select_names("nothing", GPT) == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.décodeur = nn.LSTM(8, 6), nn.Linear(6, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = nn.Sequential(Block(), Block(), nn.Linear(8, 4))
    path = tmp_path_factory.mktemp("runs") / "run"
    with attach(model, None, path, every=1, tensorboard=False) as tracker:
        for _ in range(2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += torch.randn_like(parameter)
            tracker.step()
    return open_run(path)


def first_column(text: str, head: str) -> list[str]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = lines[start + 2 :]
    return [line.split("  ")[0].strip() for line in rows[: rows.index("") if "" in rows else None]]


def test_names_that_the_report_and_the_advice_print_are_given_back(run: Run) -> None:
    names = list(run.matrices.index)
    for printed in (first_column(report_table(run), "matrix"), first_column(advice_text(advise(run)), "matrix")):
        assert [run.matrix(label) for label in printed] == names
    for label, name in zip(short_names(names, 14).values(), names, strict=True):
        np.testing.assert_array_equal(run.singular_values(label), run.singular_values(name))
        np.testing.assert_array_equal(SharedRun(run.path).singular_values(label), run.singular_values(name))


def test_a_run_says_what_is_near_an_unknown_or_ambiguous_name(run: Run) -> None:
    with pytest.raises(KeyError, match=r"no matrix '0\.decodeur'; there are 0\.décodeur\.weight"):
        run.singular_values("0.decodeur")
    with pytest.raises(KeyError, match=r"'décodeur' could be 0\.décodeur\.weight, 1\.décodeur\.weight"):
        run.singular_values("décodeur")


def test_figures_take_names_as_they_draw_them(run: Run) -> None:
    table = run.measurements
    for figure in (rank_evolution, rank_heatmap):
        by_name = figure(table, matrices=["0.décodeur.weight", "2.weight"])
        assert figure(table, matrices=["2", "0.décodeur"]).to_json() == by_name.to_json()
        assert (
            figure(table, matrices="*décodeur*").to_json()
            == figure(table, matrices=["0.décodeur.weight", "1.décodeur.weight"]).to_json()
        )
        with pytest.raises(ValueError, match=r"nothing of this was measured: no matrix '3'"):
            figure(table, matrices=["3"])
        with pytest.raises(ValueError, match="could be"):
            figure(table, matrices=["décodeur"])
    assert (
        run_comparison({"a": table}, matrix="2").to_json() == run_comparison({"a": table}, matrix="2.weight").to_json()
    )
    with pytest.raises(ValueError, match="could be"):
        run_comparison({"a": table}, matrix="1.lstm.weight_ih_l0")
    other = table.assign(matrix=pd.Categorical(["other"] * len(table)))
    assert len(run_comparison({"a": table, "b": other}, "stable_rank", matrix="2").data) == 1


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("2", ["2.weight"]),
        ("0.décodeur", ["0.décodeur.weight"]),
        ("0.lstm.weight_ih_l0[i]", ["0.lstm.weight_ih_l0[i]"]),
        ("0.lstm.weight_ih_l0", [f"0.lstm.weight_ih_l0[{gate}]" for gate in "ifgo"]),
        ("1.ls…_l0[g]", None),
        ("*décodeur", ["0.décodeur.weight", "1.décodeur.weight"]),
        (["2", "*[i]"], ["2.weight", *(f"{i}.lstm.weight_{x}_l0[i]" for i in "01" for x in ("ih", "hh"))]),
    ],
)
def test_patterns_take_printed_names(argument: str, typed: str | list[str], expected: list[str] | None) -> None:
    model = nn.Sequential(Block(), Block(), nn.Linear(8, 4))
    everything = [matrix.name for matrix in find_matrices(model)[0]]
    if expected is None:  # both weights of the recurrent layer fit what was cut out
        with pytest.raises(ValueError, match=f"{argument} pattern '1.ls…_l0.g.' could be"):
            find_matrices(model, **{argument: typed})  # type: ignore[arg-type]
        return
    found = {matrix.name for matrix in find_matrices(model, **{argument: typed})[0]}  # type: ignore[arg-type]
    assert found == (set(expected) if argument == "include" else set(everything) - set(expected))


def test_what_coverage_prints_can_be_included_or_says_why_not() -> None:
    model = nn.Sequential(Block(), nn.Linear(8, 4))
    for row in find_matrices(model)[1]:
        if row.watched:
            assert {m.parameter for m in find_matrices(model, include=row.parameter)[0]} == {row.parameter}
        else:
            with pytest.raises(ValueError, match=f"only what is skipped: .*{row.note}"):
                find_matrices(model, include=row.parameter)


def test_an_ambiguous_pattern_is_refused_at_attach(tmp_path: Path) -> None:
    model = nn.Sequential(Block(), Block())
    with pytest.raises(ValueError, match=r"include pattern 'décodeur' could be 0\.décodeur\.weight, 1\.décodeur"):
        attach(model, None, tmp_path / "run", include="décodeur")
    assert not (tmp_path / "run").exists()
