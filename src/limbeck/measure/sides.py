"""Two deployments of one model, seen alike: what each makes of texts, conversations and token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.data.chat import ChatTemplate, Message
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.session import DecodingSession
from limbeck.errors import LimbeckError
from limbeck.formats.load import Bundle
from limbeck.kernels.packed import dispatch
from limbeck.model.cache import KVKind
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear
from limbeck.model.taps import taps

__all__ = ["BundleSide", "Side", "TransformersSide", "block_points"]

_WITHIN = ("attention.qkv", "attention.out", "ffn.up", "ffn.down")
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
_REFUSED = "the template refuses the conversation"


class Side(Protocol):
    """One deployment.

    Attributes:
        name: how it is called in messages.
        config: the decoder, where it is one of ours.
        coarsest: the type in which its matrices are stored that rounds most, such as ``fp32``, ``bf16`` or ``int4``.
        arithmetic: the type in which it computes.
    """

    name: str
    config: DecoderConfig | None
    coarsest: str
    arithmetic: str

    def encode(self, text: str) -> list[int]:
        """Return ids of a text without any token that is not in it."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what ``encode`` gives of each text."""
        ...

    def prompt(self, text: str) -> list[int]:
        """Return ids of a text as the model is given it, a begin token included."""
        ...

    def conversation(self, turns: Sequence[Message]) -> list[int] | str | None:
        """Return ids of a conversation up to the next answer; why there are none; None without a template."""
        ...

    def stops(self) -> frozenset[int]:
        """Return the ids at which generation ends."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Return (B, T, V) logits of (B, T) ids, by one full forward."""
        ...

    def cached_logits(self, ids: Tensor) -> Tensor:
        """Return (1, T, V) logits of (1, T) ids, token by token with the deployment's cache."""
        ...

    def points(self, ids: Tensor) -> dict[str, Tensor]:
        """Return activations by name in the order of computation: ``embed``, ``blocks.0.attention.qkv``, ``blocks.0``,
        ...
        """
        ...


def block_points(layers: int) -> Iterator[str]:
    """Yield names of activations in the order of computation."""
    yield "embed"
    for i in range(layers):
        yield from (f"blocks.{i}.{part}" for part in _WITHIN)
        yield f"blocks.{i}"
    yield "norm"


class BundleSide:
    """A folder, a run, or a GGUF file, in our decoder, with plain products of what the weights decode to."""

    def __init__(self, bundle: Bundle, name: str, cache: KVKind = "model", coarsest: str | None = None) -> None:
        """Take a loaded model.

        Args:
            bundle: the model.
            name: how it is called in messages.
            cache: what keys and values are kept in.
            coarsest: the type in which its matrices were stored; None: that in which they are loaded.
        """
        self.bundle, self.name, self.cache = bundle, name, cache
        self.model: Decoder = bundle.model
        self.config: DecoderConfig | None = bundle.model.config
        self.arithmetic = _DTYPES.get(bundle.model.dtype, "fp32")
        self.coarsest = coarsest or _coarsest_kind(bundle.model)

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.bundle.tokenizer

    def encode(self, text: str) -> list[int]:
        """Return ids of a text, special-token strings read as tokens."""
        return self.tokenizer.encode(text, specials=True)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what ``encode`` gives of each text."""
        return self.tokenizer.encode_many(texts, specials=True)

    def prompt(self, text: str) -> list[int]:
        """Return ids of a text with the begin token where the tokenizer puts one."""
        ids = self.encode(text)
        return self.tokenizer.with_begin(ids) if ids or self.tokenizer.begins_with_bos else ids

    def conversation(self, turns: Sequence[Message]) -> list[int] | str | None:
        """Return ids of a conversation up to the next answer."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            template = ChatTemplate.named("auto", self.tokenizer, begin=False)
            return self.encode(template.render(list(turns), answer=True))
        except LimbeckError:
            return _REFUSED

    def stops(self) -> frozenset[int]:
        """Return the ids of generation_config.json, or the tokenizer's end token."""
        given = self.bundle.generation.get("eos_token_id", self.tokenizer.eos_id)
        return frozenset(given if isinstance(given, list) else [given])

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Map (B, T) ids to (B, T, V)."""
        with dispatch("reference"):
            out: Tensor = self.model(Batch.of_ids(ids.to(self.model.device)))
        return out.float().cpu()

    @torch.no_grad()
    def cached_logits(self, ids: Tensor) -> Tensor:
        """Map (1, T) ids to (1, T, V)."""
        session = DecodingSession(self.model, [ids[0, :1].tolist()], ids.shape[1], cache=self.cache)
        with dispatch("reference"):
            parts = [session.start().clone()]
            parts += [session.step([int(i)]).clone() for i in ids[0, 1:]]
        return torch.stack(parts, dim=1).float().cpu()

    @torch.no_grad()
    def points(self, ids: Tensor) -> dict[str, Tensor]:
        """Return activations by name."""
        found: dict[str, Tensor] = {}
        patterns = ["embed", "norm", "blocks.*"]
        with taps(self.model, patterns, outputs=lambda name, x: found.update({name: x.float().cpu()})):
            self.logits(ids)
        return {name: found[name] for name in block_points(self.model.config.layers) if name in found}

    def weights(self) -> dict[str, Tensor]:
        """Return every matrix, bias and gain by name, as decoded in fp32; a tied head has no entry of its own."""
        out: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, QuantizedEmbedding) or (isinstance(module, QuantizedLinear) and not module.borrowed):
                out[f"{name}.weight"] = module.quantized.value().decode()
        for name, parameter in self.model.named_parameters():
            out[name] = parameter.detach().float()
        return out

    def parts(self, name: str) -> Mapping[str, slice]:
        """Return the named rows of a matrix, such as q, k and v."""
        module = self.model.get_submodule(name.rpartition(".")[0])
        parts = getattr(module, "parts", None)
        return {} if not parts else {part: module.rows(part) for part in parts}  # type: ignore[operator]


def _coarsest_kind(model: nn.Module) -> str:
    """Name the stored type that rounds most: the kind of the coarsest codes, or the dtype of the parameters."""
    narrow = ("int2", "int3", "int4", "nf4", "int5", "fp8_e5m2", "int6", "fp8_e4m3", "int7")
    order = (*narrow, "int8", "bf16", "fp16", "fp32", "fp64")
    kinds = {m.quantized.layout.kind for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}
    kinds |= {_DTYPES.get(p.dtype, "fp32") for p in model.parameters()}
    return next(kind for kind in order if kind in kinds)


class TransformersSide:
    """A Hugging Face folder as transformers computes it, in fp32."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        self.name = f"transformers on {folder}"
        self.config: DecoderConfig | None = None
        self.coarsest = self.arithmetic = "fp32"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            self.generation = GenerationConfig.from_pretrained(folder)
        except OSError:
            self.generation = self.model.generation_config

    def encode(self, text: str) -> list[int]:
        """Return ids of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what ``encode`` gives of each text."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def prompt(self, text: str) -> list[int]:
        """Return ids of a text with the tokenizer's special tokens."""
        return list(self.tokenizer(text)["input_ids"])

    def conversation(self, turns: Sequence[Message]) -> list[int] | str | None:
        """Return ids of a conversation up to the next answer."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            text = self.tokenizer.apply_chat_template(
                [t.plain() for t in turns], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # jinja2's and the template's own errors
            return _REFUSED
        return self.encode(str(text))

    def stops(self) -> frozenset[int]:
        """Return the ids of the generation config."""
        given = self.generation.eos_token_id
        return frozenset(given if isinstance(given, list) else [] if given is None else [given])

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Map (B, T) ids to (B, T, V)."""
        out: Tensor = self.model(ids).logits
        return out.float()

    @torch.no_grad()
    def cached_logits(self, ids: Tensor) -> Tensor:
        """Map (1, T) ids to (1, T, V)."""
        past, parts = None, []
        for i in range(ids.shape[1]):
            out = self.model(ids[:, i : i + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
        return torch.cat(parts, dim=1).float()

    @torch.no_grad()
    def points(self, ids: Tensor) -> dict[str, Tensor]:
        """Return embedding, each block and the last norm: what ``output_hidden_states`` gives."""
        hidden = self.model(ids, output_hidden_states=True).hidden_states
        names = ["embed", *(f"blocks.{i}" for i in range(len(hidden) - 2)), "norm"]
        return {name: x.float() for name, x in zip(names, hidden, strict=False)}
