"""Benchmarks, run by `python -m benchmarks NAME [--json FILE]`; README.md beside this file tells what each compares."""
