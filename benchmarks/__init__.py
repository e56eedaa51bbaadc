"""Benchmarks, run by `python -m benchmarks NAME [--json FILE]`; docs/results/benchmarks.md describes each benchmark."""
