"""Data sets by name, and the few-shot task that a seed selects from one."""
