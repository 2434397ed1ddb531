import os

# Before torch is there: see flava_model/cli.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
