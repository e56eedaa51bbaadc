"""HTML page of runs: a summary of one run for practitioners, then tables and figures of all runs."""
