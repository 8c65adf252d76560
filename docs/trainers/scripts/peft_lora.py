"""LoRA on a small GPT-2, watched: python docs/trainers/scripts/peft_lora.py [RUN_DIRECTORY]."""

import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from inrank_monitor import attach, open_run
from inrank_monitor.advice import advise, lora_config

directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "run"
torch.manual_seed(0)
torch.set_num_threads(1)

# Text of the standard library, byte by byte.
text = torch.tensor(list(Path(torch.__file__).read_bytes()[:50_000]))
size = GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64, vocab_size=256, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(size)

lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
model = get_peft_model(model, lora)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=3e-3)

tracker = attach(model, optimizer, directory, every=3, buffer_rank=8)
for _ in range(60):
    starts = torch.randint(len(text) - 64, (8,))
    tokens = torch.stack([text[start : start + 64] for start in starts])
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    tracker.log(loss=loss)
tracker.close()

print(tracker.summary())
advice = advise(open_run(directory))
print(advice[["rank", "rank_from", "energy_share", "advice"]].to_string())
if (advice["rank"] > 0).any():
    print("The next LoraConfig:", lora_config(advice))
