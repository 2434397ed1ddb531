"""`python -m flava_model` is `flava`: for torchrun, which starts modules."""

from flava_model.cli import main

main()
