"""Sentences about the classes: positive ones, negative ones, and descriptions of what the classes look like."""
