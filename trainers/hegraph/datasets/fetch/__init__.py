"""Fetching data sets: where they come from, the download, and what of an archive goes where."""
