"""GPT-2's sizes, and how many parameters they have at a rank: the paper's Table 1 to the digit."""

from __future__ import annotations

import pytest
import torch

from inrank import convert, factorize
from inrank.gpt2.models import BYTES, PAPER_SIZES, build, parameter_count, parameters_of, parse_size, ranks_of

DENSE = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080}
LOW_RANK = {"small": (254, 91_225_344), "medium": (286, 223_783_936), "large": (312, 445_940_480)}
TABLE_1 = {  # bytes, as printed there: 248Mb, 182Mb, 1.4Kb, 895Mb, 3.1Kb, 1.8Kb, and the precision of Table 4
    "small": ("fp16", 248e6, 182e6, 1e6),
    "medium": ("fp32", 1.4e9, 895e6, 0.05e9),
    "large": ("fp32", 3.1e9, 1.8e9, 0.05e9),
}


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameters_and_model_size_are_those_of_table_1(size: str) -> None:
    rank, low = LOW_RANK[size]
    assert parameter_count(size) == DENSE[size]
    assert parameter_count(size, rank) == low
    precision, dense_bytes, low_bytes, digit = TABLE_1[size]
    assert abs(DENSE[size] * BYTES[precision] - dense_bytes) <= digit
    assert abs(low * BYTES[precision] - low_bytes) <= digit


def test_parameters_follow_the_formula_that_the_tables_follow() -> None:
    layers, width, rank = 3, 40, 7
    full = parameter_count("3x40", vocabulary=300, context=16)
    assert parameter_count("3x40", rank, vocabulary=300, context=16) == full - layers * (
        8 * width**2 - 10 * width * rank
    )


def test_counting_allocates_nothing() -> None:
    assert all(parameter.is_meta for parameter in build(parse_size("large"), device="meta").parameters())


def test_ranks_may_differ_between_layers() -> None:
    names = list(parse_size("1x40").mlp_shapes)
    one, other = parameter_count("1x40", dict(zip(names, (3, 9), strict=True))), parameter_count("1x40", 6)
    assert one == other  # c_fc and c_proj cost the same a rank


@pytest.mark.parametrize(("size", "rank"), [("small", 769), ("2x32", 0), ("2x32", 33)])
def test_rank_that_does_not_fit_is_refused(size: str, rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.(768|32) for size"):
        parameter_count(size, rank)


@pytest.mark.parametrize("text", ["", "huge", "4x", "x128", "0x128", "4x0", "4x-1", "4x128x2", "4.5x8"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size must be small, medium, large or LAYERSxWIDTH"):
        parse_size(text)


def test_heads_are_gpt2s_own_and_always_divide_the_width() -> None:
    assert [size.heads for size in PAPER_SIZES.values()] == [12, 16, 20]
    for width in range(1, 400):
        size = parse_size(f"1x{width}")
        assert width % size.heads == 0
        assert size.heads == 1 or width // size.heads >= 64


def test_buffer_rank_is_not_counted_and_w0_is_while_ranks_grow() -> None:
    model = build(parse_size("1x32"), 300, 16)
    dense = parameters_of(model)
    assert ranks_of(model) == dict.fromkeys(parse_size("1x32").mlp_shapes, 32)
    convert(model, initial_rank=5, buffer_rank=9)
    assert parameters_of(model) == dense + 2 * 5 * (32 + 128)
    factorize(model)
    assert parameters_of(model) == dense - 2 * 32 * 128 + 2 * 5 * (32 + 128)
    assert ranks_of(model) == dict.fromkeys(parse_size("1x32").mlp_shapes, 5)
    assert parameters_of(model) == sum(parameter.numel() for parameter in model.parameters())


def test_dropout_is_gpt2s_own() -> None:
    config = build(parse_size("1x32"), 300, 16).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)


def test_same_seed_gives_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build(parse_size("1x32"), 300, 16))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
