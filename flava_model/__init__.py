"""FLAVA: the model, its trainer and its evaluation, over the shards that `pmd` writes."""
