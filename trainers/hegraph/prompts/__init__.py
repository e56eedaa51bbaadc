"""Sentences about the classes: that one is in the picture, that it is not, and what it looks like."""
