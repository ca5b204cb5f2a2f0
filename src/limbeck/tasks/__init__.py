"""The tasks room; see docs/architecture.md."""
