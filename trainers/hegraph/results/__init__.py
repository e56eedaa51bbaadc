"""Records of runs, and the tables, figures and pages that are made from them.

Comes in: `result.json` of runs. Goes out: tables with intervals, plots, paired comparisons. Read `records.py` first.
This file imports nothing, because every run imports `records.py` when it starts.
"""
