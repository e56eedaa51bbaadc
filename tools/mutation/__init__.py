"""Mutation testing with cosmic-ray: see "Tests that would notice" in docs/development/architecture.md."""
