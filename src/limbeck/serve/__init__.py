"""The model behind an OpenAI-compatible endpoint, and a conversation in a terminal."""
