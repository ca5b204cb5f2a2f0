"""Losses of a language-model head, computed chunk by chunk without the full logits."""
