"""Adapters to programs of other people; nothing of the project imports them."""
