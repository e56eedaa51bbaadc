"""Mutation testing with cosmic-ray: see "Mutation tests" in docs/development/architecture.md."""
