"""Put the examples of a docstring under a heading, so that the reference shows them as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

__all__ = ["Examples"]


class Examples(Extension):
    """Write ``Examples:`` above each paragraph that begins with ``>>>``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object, in place."""
        if obj.docstring is not None:
            obj.docstring.value = titled(obj.docstring.value)


def titled(text: str) -> str:
    """Return a docstring in which paragraphs of examples are sections of the Google style."""
    parts = re.split(r"\n{2,}(?=>>> )", text)
    examples = ("Examples:\n" + re.sub(r"^(?=.)", "    ", part, flags=re.MULTILINE) for part in parts[1:])
    return "\n\n".join([parts[0], *examples])
