"""Limbeck's models in lm-evaluation-harness: ``--model limbeck --model_args pretrained=FOLDER``.

An lm-eval that reads the entry-point group ``lm_eval.models`` finds the model by itself. One that does not (0.4.13 and
before) finds it once this module was imported, as ``python -m limbeck.integrations.lm_eval_cli`` does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lm_eval import models as _models  # registers lm-eval's own models first: it does so only into an empty registry
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.integrations.chat import JinjaTemplate
from limbeck.integrations.requests import Answers
from limbeck.jobs.source import device_of, dtype_of

__all__ = ["LimbeckLM"]

del _models

T = TypeVar("T")

_LOG = logging.getLogger("lm_eval.limbeck")  # below lm-eval's own, so that it is shown as its messages are


@register_model("limbeck")
class LimbeckLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A model folder, run or Hub id as lm-eval's ``LM``; whatever lm-eval does not ask of it, it inherits."""

    def __init__(
        self,
        pretrained: str,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = "auto",
        max_length: int | None = None,
        seed: int = 0,
        chat_template: str = "default",
    ) -> None:
        """Load a model.

        Args:
            pretrained: a folder, a run, a .gguf file or a Hub id.
            adapter: a PEFT adapter to put beside it.
            dtype: auto (fp32), fp32, bf16, fp16 or fp64.
            device: auto, cpu, cuda or cuda:N; without CUDA the CPU, since lm-eval names cuda:0 where nobody did.
            batch_size: sequences at once; ``auto`` is 16, for no score depends on it.
            max_length: most tokens to read at once; none: the model's context.
            seed: of sampled generations.
            chat_template: name of the template, where the folder has several.

        Raises:
            LimbeckError: the model cannot be loaded, or an argument is wrong.
        """
        bundle = load_bundle(pretrained, dtype_of(dtype), device_of(_device(device)), adapter=adapter)
        self._begin(bundle, _size(batch_size), max_length, seed, chat_template)

    @classmethod
    def of(cls, bundle: Bundle, *, batch_size: int, max_length: int | None = None, seed: int = 0) -> LimbeckLM:
        """Wrap a model that is loaded already."""
        lm = cls.__new__(cls)
        lm._begin(bundle, batch_size, max_length, seed, "default")
        return lm

    def _begin(self, bundle: Bundle, batch_size: int, max_length: int | None, seed: int, template: str) -> None:
        super().__init__()
        self._bundle = bundle
        self._template = _template(bundle, template)
        self.answers = Answers(
            bundle.model,
            bundle.tokenizer,
            batch_size=batch_size,
            longest=max_length,
            seed=seed,
            specials=self._template is not None,
            keep=lambda kind, arguments, answer: self.cache_hook.add_partial(kind, arguments, answer),
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """See ``Answers.loglikelihood``; the arguments of a request are context and continuation."""
        return self._told(self.answers.loglikelihood([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """See ``Answers.rolling``; the argument of a request is a text."""
        return self._told(self.answers.rolling([request.args[0] for request in requests]))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """See ``Answers.generate_until``; the arguments of a request are a context and its ``generation_kwargs``."""
        return self._told(self.answers.generate_until([request.args for request in requests]))

    def _told(self, found: list[T]) -> list[T]:
        """Log what had to give way, which stands nowhere in lm-eval's own results."""
        for sentence in self.answers.told():
            _LOG.warning(sentence)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation by the folder's own template.

        Raises:
            ConfigError: it has none.
        """
        if self._template is None:
            raise ConfigError(f"{self._bundle.source} has no chat template: leave out --apply_chat_template")
        return self._template.render(chat_history, answer=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the text of the template, for lm-eval's record; empty without one."""
        return "" if self._template is None else self._template.text

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer's content, by which lm-eval keeps its caches of requests apart."""
        return f"limbeck-{self._bundle.tokenizer.fingerprint[:16]}"

    @property
    def device(self) -> str:
        """Device of the weights."""
        return str(self._bundle.model.device)

    @property
    def max_length(self) -> int:
        """Most tokens read at once."""
        return self.answers.longest

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside its results."""
        model = self._bundle.model
        return {"model_num_parameters": model.count_parameters(), "model_dtype": str(model.dtype)}


def _template(bundle: Bundle, name: str) -> JinjaTemplate | None:
    """Return the template of the model's folder, or of its GGUF file, which has one at most."""
    if bundle.folder is None or bundle.folder.is_dir():
        return None if bundle.folder is None else JinjaTemplate.read(bundle.folder, name)
    t = bundle.tokenizer
    ids = {"bos_token": t.bos_id, "eos_token": t.eos_id, "pad_token": t.pad_id}
    tokens = {key: t.piece(i) for key, i in ids.items() if i is not None}
    return None if t.chat_template is None else JinjaTemplate(t.chat_template, tokens)


def _device(name: str | None) -> str:
    if name is not None and name.startswith("cuda") and not torch.cuda.is_available():
        _LOG.warning("no CUDA device is at hand: the model runs on the CPU")
        return "cpu"
    return name or "auto"


def _size(batch_size: int | str) -> int:
    if str(batch_size).partition(":")[0] == "auto":
        return 16
    try:
        size = int(batch_size)
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(f"batch_size is auto or a number of sequences, not '{batch_size}'")
    return size
