"""Utilities of all packages: errors, files, processes of `torchrun`, devices, command lines, options."""
