"""Data sets by name, own images, and the few-shot task that a seed selects from them.

Comes in: the name of a data set or a folder, CSV or annotation file of the user. Goes out: a `Dataset`, whose splits
list paths and labels; no image is decoded before it is encoded. Read `base.py` first, then `splits.py`, which has the
few-shot protocol of CoOp.
"""
