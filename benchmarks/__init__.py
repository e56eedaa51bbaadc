"""Benchmarks by command: `python -m benchmarks NAME [--json FILE]`. See docs/benchmarks.md."""
