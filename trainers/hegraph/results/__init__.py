"""Records of runs, and the tables, figures and pages that are made from them.

This file imports nothing, because every run imports `records.py` when it starts.
"""
