"""Checkpoints, modules and runs: the only layer that knows Hugging Face files and PyTorch modules."""
