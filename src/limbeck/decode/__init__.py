"""Turning logits into text: sampling, beam search, generation on a cache."""
