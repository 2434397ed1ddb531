import os

# Before torch is there: see flava_model/cli.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What is printed is as wide as where nothing says how wide it is, and not as this terminal.
os.environ.pop("COLUMNS", None)
