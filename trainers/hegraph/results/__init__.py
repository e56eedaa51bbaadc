"""Records of runs, and the tables, figures and pages that are made from records and from nothing else.

This file imports nothing: every run imports `records.py` when it starts, and needs none of the rest.
"""
