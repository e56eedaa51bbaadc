"""One experiment from its configuration to its record, and grids of many.

Comes in: a `Config`. Goes out: a model folder and a `RunRecord`. Read `run.py` first: one run from top to bottom.
"""
