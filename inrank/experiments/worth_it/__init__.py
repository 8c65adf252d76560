"""What low-rank training is worth: dense, narrow, pruned and low-rank GPT-2s at equal steps and equal multiply-adds."""
