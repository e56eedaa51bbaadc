"""Fetching data sets: mirrors, transfers that go on where they broke off, and the safe unpacking of archives."""
