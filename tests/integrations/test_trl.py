"""TRL's trainers are Trainers: `TrackerCallback` watches them as it stands, also the adapter that they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.everything import state as everything
from torch import nn

from inrank_monitor import TrackerCallback, open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # TRL asks transformers for these by their old names
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"),
]
SENTENCES = ["the cat sat on the mat", "a dog ran in the park", "the sun is in the sky", "a fish swam in the sea"]
STEPS = 6


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's model card would import trackio, to name its page."""
    monkeypatch.setattr("trl.trainer.utils.is_trackio_available", lambda: False)


def tokenizer() -> Any:
    """One token a word, made here: nothing is downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model_of(kind: str, vocabulary: int) -> nn.Module:
    """A Llama of one layer, with a head for tokens or for a reward."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, f"LlamaFor{kind}")(config)
    return model


def trainer(name: str, folder: Path, *callbacks: Any, steps: int = STEPS, **options: Any) -> Any:
    """SFTTrainer, RewardTrainer or DPOTrainer on four sentences."""
    import trl
    from datasets import Dataset

    made = tokenizer()
    if name == "SFT":
        data = Dataset.from_dict({"text": SENTENCES * 4})
    else:
        pairs = [(chosen, rejected) for chosen in SENTENCES for rejected in SENTENCES if chosen != rejected]
        chosen, rejected = map(list, zip(*pairs, strict=True))
        data = Dataset.from_dict({"prompt": ["the"] * len(pairs), "chosen": chosen, "rejected": rejected})
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=2, save_steps=4, learning_rate=1e-2, report_to="none", disable_tqdm=True, use_cpu=True,
        bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    model = model_of("SequenceClassification" if name == "Reward" else "CausalLM", len(made))
    reference = {"ref_model": model_of("CausalLM", len(made))} if name == "DPO" else {}
    return getattr(trl, f"{name}Trainer")(
        model=model, args=arguments, train_dataset=data, processing_class=made, callbacks=list(callbacks), **reference
    )


@pytest.mark.parametrize("name", ["SFT", "Reward", "DPO"])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    found = []
    for number in range(2):
        callbacks = [TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)] if number else []
        made = trainer(name, tmp_path / f"out-{number}", *callbacks)
        made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        found.append(everything(made.model, made.optimizer.optimizer, losses))
    assert not [key for key in found[0] if found[0][key] != found[1][key]]
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.events.empty
    assert run.measurements["step"].unique().tolist() == list(range(1, STEPS + 1))
    assert (run.measurements["frobenius_norm"] > 0).all()
    assert "model.layers.0.mlp.up_proj.weight" in run.matrices.index
    steps = run.scalars.groupby("name")["step"].agg(list)
    own = {"SFT": "mean_token_accuracy", "Reward": "margin", "DPO": "rewards/chosen"}[name]
    assert steps[own][:3] == steps["loss"] == [2, 4, 6]


def test_a_resumed_fine_tuning_goes_on_with_its_run(tmp_path: Path) -> None:
    def watched() -> TrackerCallback:
        return TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)

    trainer("SFT", tmp_path / "out", watched()).train()
    trainer("SFT", tmp_path / "out", watched(), steps=8).train(
        resume_from_checkpoint=str(tmp_path / "out/checkpoint-4")
    )
    run = open_run(tmp_path / "run")
    assert run.info["segments"][-1]["resume_step"] == 4
    assert run.measurements["step"].unique().tolist() == list(range(1, 9))
