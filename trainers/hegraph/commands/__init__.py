"""The command line: one file for each command, which parses its arguments and calls the packages.

Comes in: the words of a command line. Goes out: output on stdout and an exit code. Read `predict.py` first; each
command has the same two functions, `parse_arguments` and `main`. A command imports slow packages in its functions.
"""
