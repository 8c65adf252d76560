"""Parameters of 1 × N × D: tables of positions and tokens, or one map; never a stack of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.fused_models import transformer
from torch import nn

from inrank_monitor import find_matrices, scan


class Net(nn.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))


TABLES = ("pos_embed", "pos_embedding", "position_embeddings", "positional_encoding", "query_tokens", "latents", "pe")


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_skipped_like_an_embedding(name: str) -> None:
    matrices, coverage = find_matrices(Net(**{name: (1, 16, 12)}))
    assert [matrix.name for matrix in matrices] == ["head.weight"]
    assert next(row for row in coverage if row.parameter == name).note == "an embedding (embeddings=True watches it)"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_watched_as_one_matrix_with_embeddings(name: str) -> None:
    model = Net(**{name: (1, 16, 12)})
    matrix = next(m for m in find_matrices(model, embeddings=True)[0] if m.name == name)
    assert (matrix.part, matrix.rows, matrix.cols) == (None, 16, 12)
    assert torch.equal(matrix.view(matrix.read()), getattr(model, name)[0])


@pytest.mark.parametrize("name", ["cls_token", "mask_token", "class_embedding", "scale"])
def test_a_token_of_1_by_1_by_d_is_a_vector(name: str) -> None:
    for embeddings in (False, True):
        matrices, coverage = find_matrices(Net(**{name: (1, 1, 12)}), embeddings=embeddings)
        assert [matrix.name for matrix in matrices] == ["head.weight"]
        assert next(row for row in coverage if row.parameter == name).note == "a vector"


def test_a_stack_of_one_expert_is_one_matrix_and_of_two_a_stack() -> None:
    matrices, coverage = find_matrices(Net(up_proj=(1, 12, 24), down_proj=(2, 24, 12)))
    sides = {matrix.name: (matrix.rows, matrix.cols) for matrix in matrices}
    assert sides == {"up_proj": (12, 24), "down_proj[0]": (24, 12), "down_proj[1]": (24, 12), "head.weight": (5, 12)}
    assert next(row for row in coverage if row.parameter == "up_proj").note == "12×24"


def test_a_bilinear_form_of_one_output_and_a_convolution_of_one_are_maps() -> None:
    model = nn.Sequential(nn.Bilinear(4, 6, 1), nn.Conv1d(3, 1, 5), nn.Conv1d(1, 1, 5))
    assert [(m.name, m.rows, m.cols) for m in find_matrices(model)[0]] == [
        ("0.weight", 4, 6),
        ("1.weight", 1, 15),
        ("2.weight", 1, 5),
    ]


def test_vision_models_have_no_stacks() -> None:
    size = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    model = transformer("ViTModel", "ViTConfig", image_size=16, patch_size=8, **size)
    matrices, coverage = find_matrices(model)
    assert all(matrix.part is None for matrix in matrices)
    notes = {row.parameter: row.note for row in coverage}
    assert notes["embeddings.cls_token"] == "a vector"
    assert notes["embeddings.position_embeddings"] == "an embedding (embeddings=True watches it)"
    watched = find_matrices(model, embeddings=True)[0]
    assert ("embeddings.position_embeddings", 5, 24) in [(m.name, m.rows, m.cols) for m in watched]


def test_a_scan_by_names_has_the_same_matrices(tmp_path: Path) -> None:
    model, files = Net(pos_embed=(1, 16, 12), cls_token=(1, 1, 12), up_proj=(1, 12, 40)), []
    for step in range(2):
        files.append(tmp_path / f"step_{step}.pt")
        torch.save(model.state_dict(), files[-1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
    for embeddings in (False, True):
        run = scan(files, tmp_path / f"run {embeddings}", embeddings=embeddings, tensorboard=False)
        assert set(run.matrices.index) == {m.name for m in find_matrices(model, embeddings=embeddings)[0]}
