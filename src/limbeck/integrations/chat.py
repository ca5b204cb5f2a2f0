"""The chat template of a model folder: a conversation as the text that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from limbeck.data.chat import sandbox
from limbeck.errors import ConfigError, ModelError

__all__ = ["JinjaTemplate"]

_FILE = "chat_template.jinja"
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class JinjaTemplate:
    """Jinja text as Hugging Face folders keep it, in ``chat_template.jinja`` or in ``tokenizer_config.json``.

    Attributes:
        text: the template.
        tokens: names that it may use, such as ``bos_token``.
    """

    text: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, name: str = "default") -> JinjaTemplate | None:
        """Read the template of a model folder, the one called ``name`` where there are several; None without any.

        Raises:
            ModelError: the folder's tokenizer_config.json is damaged.
            ConfigError: there are several templates, and none has this name.
        """
        file = folder / "tokenizer_config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        text = config.get("chat_template")
        if (folder / _FILE).is_file():
            text = (folder / _FILE).read_text(encoding="utf-8")
        if isinstance(text, list):
            several = {entry["name"]: entry["template"] for entry in text}
            if name not in several:
                raise ConfigError(f"{folder} has no chat template '{name}', only {', '.join(several)}: name one")
            text = several[name]
        if text is None:
            return None
        named = {key: config.get(key) for key in _NAMES}
        tokens = {k: v["content"] if isinstance(v, Mapping) else str(v) for k, v in named.items() if v is not None}
        return cls(str(text), tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: ``role`` and ``content`` of each turn.
            answer: end where the model is to begin its answer; else the last turn is the beginning of the answer, and
                the text ends with it.

        Raises:
            ModelError: the template refuses the conversation.
        """
        values: dict[str, Any] = {"messages": [dict(m) for m in messages], "add_generation_prompt": answer}
        values["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            text = sandbox().from_string(self.text).render(**self.tokens, **values)
        except TemplateError as error:
            raise ModelError(f"the model's chat template refuses this conversation: {error}") from None
        if answer:
            return text
        last = str(messages[-1]["content"]).strip()
        at = text.rfind(last)
        if at < 0:
            raise ModelError("the model's chat template changes the last turn, so that an answer cannot begin with it")
        return text[: at + len(last)]
