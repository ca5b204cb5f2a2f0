"""The techniques room; see docs/architecture.md."""
