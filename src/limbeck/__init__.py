"""Limbeck adapts and shrinks GPT-class language models and shows what each saving costs."""

__all__ = ["__version__"]

__version__ = "0.1.0"
