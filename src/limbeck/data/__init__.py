"""The data room; see docs/architecture.md."""
