"""Benchmarks by command: `python -m benchmarks NAME [--json FILE]`. See README.md beside this file."""
