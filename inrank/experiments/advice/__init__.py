"""Whether a LoRA at the advised ranks is better than one of the same size at one rank for all."""
