"""The train room; see docs/architecture.md."""
