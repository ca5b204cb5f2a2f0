"""Overlaps and repeats between data sets."""
