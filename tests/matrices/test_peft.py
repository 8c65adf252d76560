"""The tracker on models that the real PEFT has wrapped."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles, peft_worker
from helpers.everything import state
from helpers.loss_ranks import write_loss_ranks
from torch import Tensor, nn
from torch.optim import AdamW
from transformers.pytorch_utils import Conv1D

from inrank_monitor import SpectrumTracker, TrackerCallback, attach, open_run
from inrank_monitor.advice import advise, rank_pattern
from inrank_monitor.advice.reasons import LEAST_STEPS
from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.finding import Coverage, find_matrices

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# peft imports torch and transformers in ways that they deprecate; and it warns about settings that we mean
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).parents[2]
GPT2_LAYERS = ["c_attn", "c_proj", "c_fc"]


def gpt2(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = {f"{kind}_pdrop": dropout for kind in ("resid", "embd", "attn")}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, bos_token_id=0, eos_token_id=0))


class Layers(nn.Module):
    """One of each kind of layer that LoRA can wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 8)
        self.turned = Conv1D(10, 8)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.line = nn.Conv1d(4, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.turned(self.linear(self.embed(tokens)))
        image = self.conv(hidden[:, None]).mean(dim=2)
        sequence = self.line(image).mT
        attended, _ = self.attention(sequence, sequence, sequence)
        out: Tensor = self.head(attended)
        return out


WRAPPED = ["embed", "linear", "turned", "conv", "line"]


def wrap(model: nn.Module, config: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)


def lora(*targets: str, **options: Any) -> LoraConfig:
    return LoraConfig(target_modules=list(targets or WRAPPED), **{"r": 3, "lora_alpha": 5} | options)


def loss_of(model: nn.Module, step: int) -> Tensor:
    tokens = torch.randint(11, (4, 12), generator=torch.Generator().manual_seed(step))
    if isinstance(getattr(model, "config", None), GPT2Config):
        loss: Tensor = model(input_ids=tokens, labels=tokens).loss
        return loss
    return (model(tokens) - 1).square().mean()


def train(model: nn.Module, optimizer: AdamW, steps: int, after: Callable[[int], None] | None = None) -> None:
    model.train()
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        if after is not None:
            after(step)
        optimizer.zero_grad()


def adamw(model: nn.Module) -> AdamW:
    return AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)


def watch(model: nn.Module, optimizer: AdamW | None, directory: Path, **options: Any) -> SpectrumTracker:
    return attach(model, optimizer, directory, **{"every": 1, "buffer_rank": 3, "tensorboard": False} | options)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight as the model without PEFT would have it."""
    whole = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    return {name: parameter.detach().double() for name, parameter in whole.named_parameters()}


def assert_updates(directory: Path, step: int, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """The stored spectra are those of the merged weights' change, for every watched matrix."""
    run = open_run(directory)
    for name, matrix in run.matrices.iterrows():
        update = (after[matrix["parameter"]] - before[matrix["parameter"]]).flatten(1).numpy()
        if matrix["kind"] == "Conv1D":
            update = update.T
        if matrix["part"] in ("q", "k", "v"):
            place = "qkv".index(matrix["part"])
            update = update[place * matrix["rows"] : (place + 1) * matrix["rows"]]
        values = oracles.singular_values(update)
        found = run.singular_values(str(name)).loc[step].dropna().to_numpy()
        # merging rounds to the last digits of weights that are larger than their change
        np.testing.assert_allclose(found, values[: len(found)], atol=2e-7 * values[0], err_msg=str(name))
        assert (values[len(found) :] < 1e-9 * values[0]).all(), name


def notes(coverage: Coverage) -> dict[str, str]:
    return {row.parameter: row.note for row in coverage}


# --- the update is that of the merged weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"linear": 5}, "alpha_pattern": {"turned": 1}},
        {"init_lora_weights": False},
        {"target_modules": ["linear", "turned"], "init_lora_weights": "pissa"},
        {"target_modules": ["linear"], "init_lora_weights": "olora"},
        {"target_modules": ["linear", "embed"], "init_lora_weights": "mica"},
        {"target_modules": ["linear", "attention"]},
        {"modules_to_save": ["head"], "lora_bias": True, "bias": "all", "target_modules": ["linear"]},
    ],
    ids=["plain", "patterns", "random", "pissa", "olora", "mica", "attention", "modules_to_save"],
)
def test_spectra_are_those_of_the_merged_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    model = wrap(Layers(), LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": WRAPPED} | options)).double()
    before, optimizer = merged_weights(model), adamw(model)
    # PEFT 0.21 adds the product of attention's out_proj twice (huggingface/peft#3774)
    doubled = ["attention.out_proj.weight"] if "attention" in options.get("target_modules", ()) else None
    with watch(model, optimizer, tmp_path / "run", embeddings=True, exclude=doubled) as tracker:
        train(model, optimizer, 3)
        begins_at_zero = options.get("init_lora_weights") in (None, "mica")
        assert ("less B·A at W0" in str(tracker.coverage)) == (not begins_at_zero)
    run = open_run(tmp_path / "run")
    assert run.events.empty, run.events["message"].iloc[0]
    assert_updates(tmp_path / "run", 3, before, merged_weights(model))
    kept = run.measurements[run.measurements["layer_rank"].notna()]
    assert (kept["layer_rank"] == kept["capacity"]).all()
    assert set(kept["capacity"]) <= {3, 5}


def test_adalora_is_measured_with_its_diagonal_and_its_masks(tmp_path: Path) -> None:
    config = AdaLoraConfig(
        target_modules=["linear", "turned"], init_r=6, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=8
    )
    model = wrap(Layers().double(), config).double()
    before, optimizer = merged_weights(model), adamw(model)
    with watch(model, None, tmp_path / "run") as tracker:

        def allocate(step: int) -> None:
            model.base_model.update_and_allocate(step)  # type: ignore[union-attr,operator]
            tracker.step()

        train(model, optimizer, 8, after=allocate)
    assert_updates(tmp_path / "run", 8, before, merged_weights(model))
    rows = open_run(tmp_path / "run").measurements
    assert (rows["capacity"] == 6).all()
    assert rows.loc[rows["step"] == 8, "layer_rank"].sum() == 4  # of two layers, whose target is 2 on average
    assert rows.loc[rows["step"] == 1, "layer_rank"].sum() == 12


def test_kasa_is_measured_with_its_diagonal(tmp_path: Path) -> None:
    model = wrap(Layers().double(), lora("linear", kasa_config=peft.KasaConfig())).double()
    before, optimizer = merged_weights(model), adamw(model)
    with watch(model, optimizer, tmp_path / "run"):
        train(model, optimizer, 2)
    assert_updates(tmp_path / "run", 2, before, merged_weights(model))


def test_doras_update_is_the_product_without_its_magnitudes(tmp_path: Path) -> None:
    model = wrap(Layers().double(), lora("linear", use_dora=True)).double()
    optimizer = adamw(model)
    with watch(model, optimizer, tmp_path / "run") as tracker:
        assert "without DoRA's magnitudes" in notes(tracker.coverage)["linear.weight"]
        train(model, optimizer, 2)
    layer = model.base_model.model.linear  # type: ignore[union-attr]
    product = layer.get_delta_weight("default").detach().numpy()  # type: ignore[union-attr,operator]
    found = open_run(tmp_path / "run").singular_values("linear.weight").loc[2].dropna().to_numpy()
    np.testing.assert_allclose(found, oracles.singular_values(product)[:3], rtol=1e-6)


@pytest.mark.parametrize("transposed", [True, False])
def test_experts_are_measured_one_by_one(transposed: bool) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 5))
            self.is_transposed = transposed

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.up

    config = LoraConfig(r=2, target_parameters=["experts.up"], init_lora_weights=False, target_modules=[])
    model = wrap(nn.ModuleDict({"experts": Experts()}), config)
    matrices, coverage = find_matrices(model)
    assert notes(coverage)["experts.up"].startswith("[0] 4×5 in factors, [1] 4×5 in factors")
    adapter = matrices[0].module
    assert isinstance(adapter, Adapter)
    delta = adapter.layer.get_delta_weight("default").detach()  # type: ignore[operator]
    for index, matrix in enumerate(matrices):
        left, right = matrix.cut(*adapter.update_factors())
        torch.testing.assert_close(left @ right, delta[index])


# --- names and coverage


def test_matrices_are_named_as_in_the_model_without_peft() -> None:
    plain = {matrix.name: (matrix.rows, matrix.cols, matrix.part, matrix.kind) for matrix in find_matrices(gpt2())[0]}

    wrapped = wrap(gpt2(), LoraConfig(r=2, target_modules=GPT2_LAYERS, fan_in_fan_out=True))
    found = {matrix.name: (matrix.rows, matrix.cols, matrix.part, matrix.kind) for matrix in find_matrices(wrapped)[0]}
    assert found == plain
    injected = gpt2()
    injected.add_adapter(LoraConfig(r=2, target_modules=GPT2_LAYERS, fan_in_fan_out=True))  # type: ignore[operator]
    assert [matrix.name for matrix in find_matrices(injected)[0]] == list(plain)
    assert [matrix.name for matrix in find_matrices(wrapped.base_model)[0]] == list(plain)  # type: ignore[arg-type]
    assert [matrix.name for matrix in find_matrices(torch.compile(wrapped))[0]] == list(plain)  # type: ignore[arg-type]


def test_each_parameter_is_covered_once_and_trained_copies_have_the_name_of_their_module() -> None:
    config = lora("linear", "attention", modules_to_save=["head"], trainable_token_indices={"embed": [1, 2]})
    coverage = find_matrices(wrap(Layers(), config))[1]
    assert len(notes(coverage)) == len(coverage)
    assert {name: note for name, note in notes(coverage).items() if not note.startswith(("frozen", "a vector"))} == {
        "linear.weight": "8×6 in factors (adapter 'default': 1.67·B·A of rank 3)",
        "attention.in_proj_weight": "[q] 4×4 in factors, [k] 4×4 in factors, [v] 4×4 in factors "
        "(adapter 'default': 1.67·B·A of rank 3)",
        "attention.out_proj.weight": "4×4 in factors (adapter 'default': 1.67·B·A of rank 3)",
        "head.weight": "3×4",
        "embed.token_adapter.trainable_tokens_delta.default": "of an adapter that is not LoRA's: its update is not B·A",
    }
    assert notes(coverage)["head.original_module.weight"].startswith("frozen")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, target_modules=["linear"]),
        peft.LoKrConfig(r=2, target_modules=["linear"]),
        peft.VeraConfig(r=2, target_modules=["linear"]),
        peft.IA3Config(target_modules=["linear"], feedforward_modules=[]),
        peft.OFTConfig(r=0, oft_block_size=2, target_modules=["linear"]),
        peft.HRAConfig(r=2, target_modules=["linear"]),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_adapters_whose_update_is_no_such_product_are_refused(config: Any) -> None:
    with pytest.raises(ValueError, match=r"there is no matrix to watch .* of an adapter that is not LoRA's"):
        find_matrices(wrap(nn.ModuleDict({"linear": nn.Linear(6, 8, bias=False)}), config))


def test_prompt_encoders_are_watched_as_plain_parameters() -> None:
    config = peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", encoder_hidden_size=8)
    names = [matrix.name for matrix in find_matrices(wrap(gpt2(), config))[0]]
    assert names == [f"prompt_encoder.default.mlp_head.{place}.weight" for place in (0, 2, 4)]
    assert "transformer.h.0.attn.c_attn.weight" in notes(find_matrices(wrap(gpt2(), config))[1])


# --- passive, merged, switched, resumed


def run(directory: Path | None, config: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model = wrap(gpt2(), config)
    optimizer = adamw(model)
    losses: list[float] = []

    def note_loss(step: int) -> None:
        losses.append(float(torch.rand(())))

    tracker = None if directory is None else watch(model, optimizer, directory, every=3)
    train(model, optimizer, 40, after=note_loss)
    if tracker is not None:
        assert tracker.step_count == 40
        tracker.close()
    return state(model, optimizer, losses)


@pytest.mark.parametrize(
    "options",
    [{}, {"init_lora_weights": False, "use_dora": True, "modules_to_save": ["lm_head"]}],
    ids=["lora", "dora"],
)
def test_training_adapters_is_the_same_to_the_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    config = LoraConfig(r=2, lora_dropout=0.1, target_modules=GPT2_LAYERS, fan_in_fan_out=True, **options)
    assert run(tmp_path / "run", config) == run(None, config)
    log = open_run(tmp_path / "run")
    assert log.events.empty, log.events["message"].iloc[0]
    assert log.measurements["step"].nunique() == 14


def test_merging_is_an_event_and_changes_no_spectrum(tmp_path: Path) -> None:
    model = wrap(Layers().double(), lora("linear", "turned")).double()
    before, optimizer = merged_weights(model), adamw(model)
    with watch(model, optimizer, tmp_path / "run"):
        train(model, optimizer, 2)
        after = merged_weights(model)
        model.merge_adapter()  # type: ignore[operator]
        optimizer.step()  # moves nothing: while the factors are merged they get no gradient
        model.unmerge_adapter()  # type: ignore[operator]
        with model.disable_adapter():  # type: ignore[operator]
            model(torch.zeros(1, 12, dtype=torch.long))
        train(model, optimizer, 1)
        whole = model.merge_and_unload()  # type: ignore[operator]
        assert not any("lora" in name for name, _ in whole.named_parameters())
        optimizer.step()
    events = open_run(tmp_path / "run").events
    assert events["kind"].tolist() == ["adapter_changed"] * 3
    assert events["step"].tolist() == [3, 4, 5]
    assert "2 matrices (linear.weight, turned.weight)" in events["message"].iloc[0]
    assert "now merged into the base weight" in events["message"].iloc[2]
    assert_updates(tmp_path / "run", 2, before, after)
    final = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    assert_updates(tmp_path / "run", 5, before, final)


def test_attention_merges_in_every_forward_pass_and_that_is_no_event(tmp_path: Path) -> None:
    model = wrap(Layers(), lora("attention"))
    optimizer = adamw(model)
    with watch(model, optimizer, tmp_path / "run"):
        train(model, optimizer, 2)
    log = open_run(tmp_path / "run")
    assert log.events.empty
    assert (log.measurements["spectral_norm"] > 0).all()


def test_switching_to_another_adapter_is_told(tmp_path: Path) -> None:
    model = wrap(Layers(), lora("linear"))
    model.add_adapter("second", lora("linear", r=2))  # type: ignore[operator]
    with watch(model, None, tmp_path / "run") as tracker:
        assert notes(tracker.coverage)["linear.weight[second]"].startswith("frozen")
        model.set_adapter("second")  # type: ignore[operator]
        tracker.step()
        model.delete_adapter("default")  # type: ignore[operator]
        tracker.step()
    events = open_run(tmp_path / "run").events
    assert events["message"].iloc[0] == "adapter 'default' is now not active (second is); it was in use"
    assert events["kind"].tolist() == ["adapter_changed", "parameter_gone"]


def test_a_saved_adapter_is_resumed_from_the_runs_own_start(tmp_path: Path) -> None:
    model = wrap(Layers().double(), lora("linear", "turned", init_lora_weights=False)).double()
    before, optimizer = merged_weights(model), adamw(model)
    base = copy.deepcopy(model).unload()  # type: ignore[operator]
    with watch(model, optimizer, tmp_path / "run"):
        train(model, optimizer, 2)
    model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).double()
    again = adamw(loaded)
    again.load_state_dict(optimizer.state_dict())
    with watch(loaded, again, tmp_path / "run", resume=True) as tracker:
        assert tracker.step_count == 2
        train(loaded, again, 2)
    assert_updates(tmp_path / "run", 4, before, merged_weights(loaded))


def test_a_quantised_base_is_never_read(tmp_path: Path) -> None:
    class Int8(nn.Linear):
        """A stand-in for a quantised layer: what is stored is not the weight, and making it dense is an error."""

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.zeros(*inputs.shape[:-1], self.out_features)

        def __getattr__(self, name: str) -> Any:
            assert name != "weight" or not closed, "the quantised weight was read"
            return super().__getattr__(name)

    closed = False
    layer = Int8(6, 8, bias=False)
    layer.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    model = wrap(nn.Sequential(layer), lora("0"))
    optimizer, closed = adamw(model), True
    with watch(model, optimizer, tmp_path / "run"):
        for _ in range(2):
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
    log = open_run(tmp_path / "run")
    assert log.events.empty
    assert log.matrices[["parameter", "initial_norm"]].to_numpy().tolist() == [["0.weight", 0.0]]


def test_advice_from_adapters_is_a_rank_pattern_that_peft_takes(tmp_path: Path) -> None:
    model = wrap(gpt2(), LoraConfig(r=4, target_modules=GPT2_LAYERS, fan_in_fan_out=True))
    optimizer = adamw(model)
    with watch(model, optimizer, tmp_path / "run", buffer_rank=2):
        train(model, optimizer, LEAST_STEPS)
    names = open_run(tmp_path / "run").matrices.index
    write_loss_ranks(tmp_path / "run", {str(name): 1 + place % 4 for place, name in enumerate(names)}, LEAST_STEPS)
    table = advise(open_run(tmp_path / "run"))
    assert (table["energy_rank"] <= 4).all()
    pattern = rank_pattern(table)
    assert len(pattern) == 8
    config = LoraConfig(r=9, target_modules=list(pattern), rank_pattern=pattern, fan_in_fan_out=True)
    for matrix in find_matrices(wrap(gpt2(), config))[0]:
        assert isinstance(matrix.module, Adapter)
        assert matrix.module.capacity == pattern[matrix.parameter.removesuffix(".weight")]


def test_the_trainer_resumes_an_adapter_at_its_checkpoint(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in torch.randint(40, (8, 12))]

    def trainer() -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=4, save_steps=2, report_to="none", disable_tqdm=True,
            use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        model = wrap(gpt2(), LoraConfig(r=2, target_modules=GPT2_LAYERS, fan_in_fan_out=True))
        callback = TrackerCallback(tmp_path / "run", every=1, buffer_rank=3, tensorboard=False)
        return Trainer(model, arguments, train_dataset=rows, callbacks=[callback])  # type: ignore[arg-type]

    trainer().train()
    whole = open_run(tmp_path / "run").measurements
    trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    log = open_run(tmp_path / "run")
    assert log.events["kind"].tolist() == ["resumed"]
    assert log.measurements["step"].tolist() == whole["step"].tolist()
    np.testing.assert_allclose(log.measurements["spectral_norm"], whole["spectral_norm"], rtol=1e-4)


def test_the_script_of_the_page_trains_and_prints_its_table(tmp_path: Path) -> None:
    script = ROOT / "docs" / "trainers" / "scripts" / "peft_lora.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "transformer.h.0.attn.c_attn.weight[q]" in done.stdout
    assert open_run(tmp_path / "run").status == "finished"


def test_two_processes_measure_the_adapters_that_one_would(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    commands = [[sys.executable, peft_worker.__file__, str(n), str(tmp_path)] for n in range(peft_worker.PROCESSES)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for command in commands]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(error[-3000:] for error in errors)
    model = peft_worker.adapted()
    for resumed in (False, True):
        peft_worker.train(model, tmp_path / "one", resumed=resumed)
    one = open_run(tmp_path / "one")
    for kind in ("ddp", "fsdp"):
        two = open_run(tmp_path / kind)
        assert two.events["kind"].tolist() == ["resumed"]
        assert list(two.matrices.index) == ["0.weight", "2.weight"]
        for name in one.matrices.index:
            expected, found = one.singular_values(str(name)), two.singular_values(str(name))
            assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
            np.testing.assert_allclose(found, expected, atol=1e-6 * float(expected.to_numpy().max()))
