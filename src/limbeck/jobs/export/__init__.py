"""Writing a model for other programs, and checking what was written."""
