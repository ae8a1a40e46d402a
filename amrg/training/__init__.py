"""Training: the DeepSpeed engine, the loop, checkpoints, and the two stages."""
