"""One file a model; each imports layers.py and losses.py, and no other model."""
