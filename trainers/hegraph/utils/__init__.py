"""Helpers of all packages, one subject a file: errors, files, options, processes, devices, reading of files.

Comes in: paths, arguments and files of the user. Goes out: checked values, or a `UserError` with its remedy.
Read `errors.py` first, then `option.py`, which declares every configuration key.
"""
