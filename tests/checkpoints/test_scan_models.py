"""Scans of what real libraries save (transformers, its Trainer, PEFT, Lightning) against the tracker that watched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scans import assert_same_measurements, scanned
from helpers.trainers import Sequences
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from inrank_monitor import TrackerCallback, attach, open_run
from inrank_monitor.runs.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # PEFT's use of transformers, and its advice on a tied embedding
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]

VOCABULARY, CONTEXT, STEPS = 40, 8, (0, 2, 4)
ROOT = Path(__file__).parents[2]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


def tracked(model: nn.Module, folder: Path, save: Any, **options: Any) -> Run:
    """A tracked training of a language model; `save(step)` is called at each step of STEPS."""
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    save(0)
    with attach(model, optimizer, folder / "live", every=2, buffer_rank=3, tensorboard=False, **options):
        for step in range(1, STEPS[-1] + 1):
            tokens = torch.randint(VOCABULARY, (4, CONTEXT), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step in STEPS:
                save(step)
    return open_run(folder / "live")


@pytest.mark.parametrize("options", [{}, {"embeddings": True, "split_parts": False}])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_save_pretrained_is_scanned_as_the_tracker_saw_it(
    options: dict[str, Any], shard_size: str, tmp_path: Path
) -> None:
    model = gpt2()

    def save(step: int) -> None:
        model.save_pretrained(tmp_path / "out" / f"checkpoint-{step}", max_shard_size=shard_size)

    live = tracked(model, tmp_path, save, **options)
    run = scanned([tmp_path / "out"], tmp_path / "run", **options)
    assert_same_measurements(run, live)
    assert run.info["model"] == live.info["model"]
    assert run.info["coverage"] == live.info["coverage"]


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("with_config", [False, True])
def test_state_dicts_are_scanned_as_the_tracker_saw_them(suffix: str, with_config: bool, tmp_path: Path) -> None:
    model = gpt2()

    def save(step: int) -> None:
        state, path = model.state_dict(), tmp_path / f"step_{step}{suffix}"
        if suffix == ".safetensors":
            save_file({name: value.clone() for name, value in state.items()}, path)
        else:
            torch.save({"model": state, "step": step}, path)

    live = tracked(model, tmp_path, save)
    paths = [tmp_path / f"step_{step}{suffix}" for step in STEPS]
    model.config.save_pretrained(tmp_path / "elsewhere")
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["GPT2LMHeadModel"]}))
    run = scanned(paths, tmp_path / "run", config=config if with_config else None)
    if with_config or suffix != ".safetensors":
        assert_same_measurements(run, live)
    else:  # the format keeps no order
        assert sorted(run.matrices.index) == sorted(live.matrices.index)
        columns = ["step", "matrix", "intrinsic_rank", "null_rank"]
        tables = [each.measurements[columns].astype({"matrix": str}) for each in (run, live)]
        tables = [table.sort_values(["step", "matrix"], ignore_index=True) for table in tables]
        assert tables[0].equals(tables[1])


def test_the_pretrained_base_without_its_prefix_is_w0(tmp_path: Path) -> None:
    """As on the model hub, where gpt2's names lack `transformer.`, and a checkpoint of the fine-tuning has it."""
    model = gpt2()

    def save(step: int) -> None:
        folder = tmp_path / ("base" if step == 0 else f"out/checkpoint-{step}")
        model.save_pretrained(folder)
        if step == 0:
            names = {name: value.clone() for name, value in model.transformer.state_dict().items()}
            save_file(names, folder / "model.safetensors")

    live = tracked(model, tmp_path, save)
    assert_same_measurements(scanned([tmp_path / "base", tmp_path / "out"], tmp_path / "run"), live)


def test_a_config_that_is_of_no_use_is_named_and_names_are_used(tmp_path: Path) -> None:
    for step, seed in ((0, 0), (5, 1)):
        torch.manual_seed(seed)
        torch.save({"a.weight": torch.randn(5, 4)}, tmp_path / f"step_{step}.pt")
    for content, reason in (
        ({"lr": 0.1}, "model_type"),
        ([1, 2], "should hold a JSON object"),
        ({"model_type": "gpt2"}, "names no architecture"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}, "custom code"),
        (gpt2().config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}, "which the checkpoint has not"),
        (gpt2().config.to_dict() | {"architectures": ["NoSuchModel"]}, "NoSuchModel is no model of transformers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        run = scanned([tmp_path / "step_0.pt", tmp_path / "step_5.pt"], tmp_path / f"run {reason}")
        assert reason in run.events["message"][0]
        assert list(run.matrices.index) == ["a.weight"]
        with pytest.raises(ValueError, match="is not used"):
            scanned([tmp_path], tmp_path / "other", config=tmp_path / "config.json")


def test_a_converted_model_is_refused_until_it_is_merged(tmp_path: Path) -> None:
    import inrank

    model = gpt2()
    inrank.convert(model, initial_rank=1, buffer_rank=2)
    for step in (0, 1):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"converted by inrank: save it after inrank\.merge"):
        scanned([tmp_path], tmp_path / "run")


def test_a_state_dict_with_factors_in_it_is_refused(tmp_path: Path) -> None:
    import inrank

    converted = gpt2()
    inrank.convert(converted, initial_rank=1, buffer_rank=2)
    for model, message in ((lora(), "PEFT's factors among other weights"), (converted, "save it after inrank.merge")):
        for step in (0, 1):
            torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
        with pytest.raises(ValueError, match=message):
            scanned([tmp_path], tmp_path / "run")


def test_a_trainers_folder_is_scanned_as_its_callback_logged(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "base")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=12, save_steps=4, logging_steps=2, learning_rate=1e-2,
        per_device_train_batch_size=4, report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    callback = TrackerCallback(tmp_path / "live", every=4, buffer_rank=3, tensorboard=False)
    Trainer(model, arguments, train_dataset=Sequences(), callbacks=[callback]).train()
    live = open_run(tmp_path / "live")
    run = scanned([tmp_path / "base", tmp_path / "out"], tmp_path / "run")
    assert_same_measurements(run, live)
    logged = [sorted(each.scalars[["step", "name", "value"]].to_numpy().tolist()) for each in (run, live)]
    assert logged[0] == [row for row in logged[1] if not row[1].startswith("tracker_")]


def lora(**options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        gpt2(),
        LoraConfig(
            **{"r": 3, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} | options
        ),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"c_attn": 5}, "alpha_pattern": {r"h\.1\.mlp\.c_proj": 2}},
        {"target_modules": ["wte", "c_fc"]},
        {"modules_to_save": ["wpe"]},
        {"init_lora_weights": False},
        {"use_dora": True},
    ],
)
def test_adapters_are_scanned_as_the_tracker_saw_them(options: dict[str, Any], tmp_path: Path) -> None:
    model = lora(**options)

    def save(step: int) -> None:
        model.save_pretrained(tmp_path / "out" / f"checkpoint-{step}", save_embedding_layers=False)

    watched = {"embeddings": "wte" in options.get("target_modules", ())}
    live = tracked(model, tmp_path, save, **watched)
    run = scanned([tmp_path / "out"], tmp_path / "run", **watched)
    measured = run.measurements[run.measurements["step"] > 0].reset_index(drop=True)
    assert measured["step"].unique().tolist() == [2, 4]
    columns = ["frobenius_norm", "spectral_norm", "stable_rank", "effective_rank"]
    by_name = [
        table.assign(matrix=table["matrix"].astype(str)).set_index(["step", "matrix"]).sort_index()
        for table in (measured, live.measurements)
    ]
    for column in ("intrinsic_rank", "layer_rank", "null_rank"):
        assert by_name[0][column].equals(by_name[1][column]), column
    torch.testing.assert_close(
        torch.tensor(by_name[0][columns].to_numpy()), torch.tensor(by_name[1][columns].to_numpy()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "LOHA adapter: only LoRA"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
    ],
)
def test_adapters_whose_update_is_not_in_the_factors_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    lora().save_pretrained(tmp_path / "checkpoint-1")
    config = tmp_path / "checkpoint-1" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        scanned([tmp_path], tmp_path / "run")


def test_an_adapters_file_is_the_adapter(tmp_path: Path) -> None:
    lora().save_pretrained(tmp_path / "checkpoint-1")
    run = scanned([tmp_path / "checkpoint-1" / "adapter_model.safetensors"], tmp_path / "run")
    assert "transformer.h.0.attn.c_attn.weight[q]" in run.matrices.index
    assert (run.measurements["intrinsic_rank"] == 0).all()
    with pytest.raises(ValueError, match="neither model nor config"):
        scanned([tmp_path / "checkpoint-1"], tmp_path / "other", model=gpt2())


def test_adapters_and_whole_models_are_not_mixed(tmp_path: Path) -> None:
    lora().save_pretrained(tmp_path / "out" / "checkpoint-1")
    gpt2().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is an adapter and .*base holds whole weights"):
        scanned([tmp_path / "base", tmp_path / "out"], tmp_path / "run")


# Lightning's own: it looks for a module that setuptools is about to drop, and counts workers and batches
@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*")
def test_lightning_checkpoints_are_scanned_as_the_tracker_saw_them(tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    class Fit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return self.net(batch[0]).square().mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            optimizer = AdamW(self.parameters(), lr=1e-2)
            self.tracker = attach(
                self.net, optimizer, tmp_path / "live", every=3, buffer_rank=2, initial_weights="memory"
            )
            return optimizer

    torch.manual_seed(0)
    model = Fit()
    torch.save(model.net.state_dict(), tmp_path / "start.pt")
    saving = ModelCheckpoint(tmp_path / "out", filename="{epoch}-{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = pl.Trainer(
        max_steps=9, callbacks=[saving], logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(36, 6)), batch_size=4))
    model.tracker.close()
    run = scanned([tmp_path / "start.pt", tmp_path / "out"], tmp_path / "run", buffer_rank=2)
    assert run.measurements["step"].unique().tolist() == [3, 6, 9]
    assert_same_measurements(run, open_run(tmp_path / "live"))


def test_the_documented_script_runs(tmp_path: Path) -> None:
    script = ROOT / "docs" / "trainers" / "scripts" / "scan_checkpoints.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "transformer.h.0.mlp.c_fc.weight" in done.stdout
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [15, 30, 45, 60]
