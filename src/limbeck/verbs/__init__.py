"""Verbs: one frozen config each, and their table."""
