"""What the demo trains, and its checkpoint: all that it takes to go on with the same result to the bit."""

from __future__ import annotations

import math
import pickle

import torch

from inrank_monitor.demo.options import CHECKPOINT_FILE, DemoOptions
from inrank_monitor.demo.text import DemoError
from inrank_monitor.files import replaced


class Training:
    """Model, optimizer, learning rate schedule and order of the data, from a seed; saved and loaded as one.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(self, options: DemoOptions, vocabulary: int, device: torch.device) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(options.seed)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=options.context,
            n_embd=options.width,
            n_layer=options.layers,
            n_head=options.head_count,
            use_cache=False,
            bos_token_id=None,  # the defaults lie outside a small vocabulary
            eos_token_id=None,
        )
        self.device = device
        self.model = GPT2LMHeadModel(config).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: _lr_factor(i, options.steps))
        self.data_order = torch.Generator("cpu").manual_seed(options.seed)
        self.step = 0

    def save(self, options: DemoOptions) -> None:
        """Replace the checkpoint in one step."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "data_order": self.data_order.get_state(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        path = options.directory / CHECKPOINT_FILE
        with replaced(path) as temporary:
            torch.save(state, temporary)

    def load(self, options: DemoOptions) -> None:
        """Take up the checkpoint, if there is one yet.

        Raises:
            DemoError: it is damaged.
        """
        path = options.directory / CHECKPOINT_FILE
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.data_order.set_state(state["data_order"])
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and state["device_rng"] is not None:
                torch.cuda.set_rng_state(state["device_rng"], self.device)
            self.step = state["step"]
        except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            line = str(error).splitlines()[0]
            raise DemoError(f"{path} cannot be read ({line}); start again with --overwrite") from None


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        DemoError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # unknown, or not there
        raise DemoError(
            f"--device must be a device of this machine, got {name!r}: {str(error).splitlines()[0]}"
        ) from None


def _lr_factor(index: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine down to a tenth."""
    warmup = max(1, steps // 20)
    if index < warmup:
        return (index + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (index - warmup) / max(1, steps - warmup))
