"""Measuring: perplexity, overlap, cost, and the statistics that say how sure a number is."""
