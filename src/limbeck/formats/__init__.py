"""The formats room; see docs/architecture.md."""
