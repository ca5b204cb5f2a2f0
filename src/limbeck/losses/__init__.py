"""The losses room; see docs/architecture.md."""
