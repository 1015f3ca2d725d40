"""The trainer: config, models, losses, the loop, checkpoints. Start it with `accelerate launch train/run.py`."""
