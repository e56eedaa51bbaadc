"""Records of small made-up runs, shared with the tests of `results`."""

from tests.results.conftest import calibrated, run

__all__ = ["calibrated", "run"]
