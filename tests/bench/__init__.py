"""Benchmarks: `python -m tests.bench.NAME --json`. Ratios are against a ceiling or a peer of the same run."""
