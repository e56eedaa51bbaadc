"""Benchmarks, run by `python -m benchmarks NAME [--json FILE]`; docs/benchmarks.md tells what each compares."""
