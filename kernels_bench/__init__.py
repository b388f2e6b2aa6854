"""Benches of what a run's time is made of. `python -m kernels_bench BENCH [flags]`; the rules are in README.md."""
