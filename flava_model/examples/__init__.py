"""Short programs that train from a locked corpus with the loaders of others. Each runs as it is."""
