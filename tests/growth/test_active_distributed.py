"""The active mode on two processes: DistributedDataParallel through growth and factorization, FSDP2 at fixed ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import active_worker
from helpers.active_training import converted, gpt2, layers_of, loss_of, next_token_loss, tokens
from helpers.active_worker import LATER, SCENARIOS, STEPS, prepared
from torch.optim import SGD

import inrank

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]
PROCESSES = 2
WORKER = Path(active_worker.__file__)
Found = Callable[[str], list[Any]]
TRAININGS = ["default rule", "rule by gradient", "kaiming", "quarrelsome rule"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process found in a scenario; both ran all of them, once for the whole file."""
    directory = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else dict(os.environ)
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(process), str(PROCESSES), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for process in range(PROCESSES)
    ]
    answers = [worker.communicate(timeout=240) for worker in workers]
    for worker, (done, errors) in zip(workers, answers, strict=True):
        assert worker.returncode == 0, f"{done}\n{errors[-3000:]}"
    numbers = {name: number for number, name in enumerate(SCENARIOS)}

    def load(name: str) -> list[Any]:
        files = [directory / f"{numbers[name]}-{process}.pt" for process in range(PROCESSES)]
        return [torch.load(file, weights_only=False) for file in files]

    return load


def test_a_dense_model_is_factorized_by_what_all_processes_see(found: Found) -> None:
    """Ranks, factors and losses are those of one process that has all the batches."""
    one, two = found("dense first")
    for name in ("dense", "factorized", "weights"):
        assert_same_bits(one[name], two[name])
    assert [one[name] for name in ("ranks", "losses", "plan")] == [two[name] for name in ("ranks", "losses", "plan")]
    model = gpt2()
    model.load_state_dict(one["dense"])
    every = [{"input_ids": tokens(10 * process + place)} for process in range(PROCESSES) for place in range(3)]
    batches = [batch | {"labels": batch["input_ids"]} for batch in every]
    report = inrank.factorize(model, budget=0.5, calibration=batches)
    assert report.ranks == one["ranks"]
    assert (report.loss_before, report.loss_after) == pytest.approx(one["losses"], rel=1e-5)
    for name, layer in layers_of(model).items():
        alone = layer.gain * layer.U @ layer.V
        together = one["factorized"][f"{name}.U"] @ one["factorized"][f"{name}.V"] * layer.gain
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-5)


def test_settled_ranks_decide_on_all_processes_at_once(found: Found) -> None:
    one, two = found("settled")
    assert len(one["when"]) == 1
    assert 2 < one["when"][0][0] < 18
    assert one["when"] == two["when"]
    assert_same_bits(one["weights"], two["weights"])


def assert_same_bits(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    different = [name for name in one if one[name] is not None and not torch.equal(one[name], two[name])]
    assert not different


@pytest.mark.parametrize("scenario", TRAININGS)
def test_ranks_and_weights_are_equal_to_the_bit_through_growth_and_factorization(found: Found, scenario: str) -> None:
    first, second = found(scenario)
    assert first["losses"] != second["losses"]  # they did train on data of their own
    assert first["ranks"] == second["ranks"]
    assert len({growth.step for growth in first["history"]}) >= 3
    assert [growth.new_rank for growth in first["history"]] == [growth.new_rank for growth in second["history"]]
    assert_same_bits(first["grown"], second["grown"])
    assert_same_bits(first["weights"], second["weights"])


@pytest.mark.parametrize("scenario", TRAININGS)
def test_factors_of_a_model_that_was_wrapped_anew_are_trained_together(found: Found, scenario: str) -> None:
    first, second = found(scenario)
    assert not [name for name, gradient in first["gradients"].items() if gradient is None]
    assert_same_bits(first["gradients"], second["gradients"])
    factors = [name for name in first["weights"] if name.endswith((".U", ".V"))]
    assert len(factors) == 8
    for name in factors:
        rank = first["ranks"][name[:-2]]
        assert rank in first["weights"][name].shape
    assert sum(first["losses"][-LATER:]) / LATER < 0.9 * first["losses"][0]
    assert len(first["losses"]) == STEPS + LATER


def test_columns_that_grew_were_trained_on_both(found: Found) -> None:
    for each in found("default rule"):
        start = converted()
        for name, rank in each["ranks"].items():
            U, V = (each["grown"][f"{name}.{factor}"] for factor in "UV")
            assert rank > start.get_submodule(name).rank
            assert U[:, : rank + 3].any(0).all()
            assert not U[:, rank + 3 :].any()
            assert not V[rank + 3 :].any()
            assert torch.equal(each["grown"][f"{name}.initial_weight"], start.get_submodule(name).initial_weight)


def test_the_first_process_decides_where_rules_disagree(found: Found) -> None:
    checks = STEPS // 5
    for each in found("quarrelsome rule"):  # the first asks for one more, the second for three
        assert set(each["ranks"].values()) == {1 + checks}


def test_a_rule_sees_the_gradient_of_all_processes(found: Found) -> None:
    first, second = found("gradient of the first step")
    assert second == {}  # only the first asks its rule
    model = converted()
    layers = {name: model.get_submodule(name) for name in first}
    assert len(layers) == 4
    for layer in layers.values():
        layer.initial_weight.requires_grad_(True)
    (loss_of(model, 0) + loss_of(model, 1)).backward()
    for name, layer in layers.items():
        expected = torch.linalg.svdvals(layer.initial_weight.grad.double())
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6 * float(expected[0]))


def test_a_controller_made_before_the_wrapper_trains_on(found: Found) -> None:
    first, second = found("controller before DDP")
    for losses in (first, second):
        assert losses[-1] < losses[0]


def test_factorizing_inside_the_wrapper_is_refused(found: Found) -> None:
    for each in found("factorize wrapped"):
        assert len(each) == 2
        for message in each:
            assert "model is in DistributedDataParallel: factorize model.module and wrap it anew" in message


@pytest.mark.parametrize("factorized", [True, False])
def test_fsdp_at_fixed_ranks_trains_as_one_process_does(found: Found, factorized: bool) -> None:
    model = prepared(factorized)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    expected = []
    for step in range(5):
        optimizer.zero_grad()
        loss = next_token_loss(model, tokens(step))
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    results = found("FSDP, factorized" if factorized else "FSDP, converted")
    losses = [sum(pair) / PROCESSES for pair in zip(*(each["losses"] for each in results), strict=True)]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for each in results:
        for name, value in model.named_parameters():
            torch.testing.assert_close(each["weights"][name], value.detach(), rtol=1e-4, atol=1e-6)
            assert name.endswith("initial_weight") or not torch.equal(value, start[name])


@pytest.mark.parametrize("action", ["controller", "factorize", "merge", "initialize"])
def test_what_would_change_the_shape_of_sharded_factors_is_refused(found: Found, action: str) -> None:
    for each in found("FSDP, errors"):
        assert "'transformer.h.0.mlp.c_fc' is sharded (DTensor), which fixes its rank" in each[action]
        assert each["untouched"] == "True"


def test_converting_a_sharded_model_is_refused(found: Found) -> None:
    for each in found("FSDP, errors"):
        assert each["convert"] == "'transformer.h.0.mlp.c_fc' is sharded (DTensor): convert before fully_shard"
