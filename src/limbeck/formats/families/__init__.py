"""Hugging Face's families, one file each; ``table`` lists them."""
