"""The recipes room; see docs/architecture.md."""
