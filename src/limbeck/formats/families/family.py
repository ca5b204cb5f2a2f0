"""What a Hugging Face family is to this project: a description of the one decoder, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from limbeck.errors import ModelError
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = [
    "ACTIVATIONS",
    "HARMLESS",
    "LARGEST",
    "Family",
    "activation",
    "activation_name",
    "fused",
    "heads_together",
    "norm",
    "one",
]

ACTIVATIONS: Mapping[str, str] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""transformers' name of an activation -> ours."""

LARGEST: Mapping[str, int] = {"layers": 10_000, "hidden_size": 2**20, "vocabulary": 2**24}
"""Far above any model, far below what would overflow."""

HARMLESS = frozenset(
    {
        # names, bookkeeping and ids of tokens, which the tokenizer and generation_config.json give
        "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "is_decoder",
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "id2label",
        "label2id",
        "problem_type", "task_specific_params", "prefix", "finetuning_task", "num_labels", "chunk_size_feed_forward",
        # what a call returns, and speed
        "return_dict", "output_hidden_states", "output_attentions", "use_cache", "torchscript", "pretraining_tp",
        "tp_degree", "attn_implementation", "use_return_dict", "cache_implementation", "keys_to_ignore_at_inference",
        # training alone: initialisation, and rates of dropout
        "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop",
        "resid_pdrop", "classifier_dropout", "gradient_checkpointing", "use_bfloat16",
    }
)  # fmt: skip
"""Keys of a config.json that change nothing of what the decoder computes."""


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Attributes:
        name: its ``model_type``.
        architecture: transformers' class of the language model.
        read: config.json -> fields of ``DecoderConfig``; every key that it looks at counts as read.
        write: a decoder's config -> values of a config.json; it need not fit, ``families.family_of`` tries.
        pieces: config, prefix -> every tensor of the file but the head, in order.
        prefix: what ``save_pretrained`` puts before the stack's keys.
        first: key of the embedding without prefix, by which a file with bare keys is known.
        head: key of the head.
        usual: its activation: of two families that say one decoder, the one with its activation is taken.
        harmless: keys of its config beside ``HARMLESS`` that change nothing of what it computes.
        ignored: tensors of its files that are no weights.
    """

    name: str
    architecture: str
    read: Callable[[ConfigReader], dict[str, Any]]
    write: Callable[[DecoderConfig], dict[str, Any]]
    pieces: Callable[[DecoderConfig, str], Iterator[TensorPiece]]
    prefix: str = "model."
    first: str = "embed_tokens.weight"
    head: str = "lm_head.weight"
    usual: str = "silu"
    harmless: frozenset[str] = field(default_factory=frozenset)
    ignored: re.Pattern[str] = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def activation(s: ConfigReader, key: str, default: str) -> str:
    """Read the name of an activation.

    Raises:
        ModelError: it is none of ours.
    """
    name = s.text(key, default)
    if name not in ACTIVATIONS:
        raise ModelError(f"{s.where} has {key} '{name}': supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(config: DecoderConfig, tanh: str) -> str:
    """Return transformers' name of the activation; ``tanh`` is what the family calls GELU by tanh."""
    return tanh if config.activation == "gelu_tanh" else config.activation


def norm(key: str, name: str, width: int, *, bias: bool = False, shift: float = 0.0) -> Iterator[TensorPiece]:
    """Yield a norm's gain, and its bias where it has one."""
    yield TensorPiece(f"{key}.weight", f"{name}.weight", (width,), shift=shift)
    if bias:
        yield TensorPiece(f"{key}.bias", f"{name}.bias", (width,))


def fused(name: str, parts: Mapping[str, int], inputs: int, bias: bool) -> Iterator[TensorPiece]:
    """Yield separate matrices of the file, in the order of the rows of our one; biases after."""
    for leaf in ("weight", "bias") if bias else ("weight",):
        at = 0
        for key, outputs in parts.items():
            shape = (outputs, inputs) if leaf == "weight" else (outputs,)
            yield TensorPiece(f"{key}.{leaf}", f"{name}.{leaf}", shape, rows=slice(at, at + outputs))
            at += outputs


def one(
    key: str, name: str, outputs: int, inputs: int, bias: bool, rows: Tensor | None = None
) -> Iterator[TensorPiece]:
    """Yield one matrix with its bias; ``rows`` of ours in the file's order."""
    yield TensorPiece(f"{key}.weight", f"{name}.weight", (outputs, inputs), rows)
    if bias:
        yield TensorPiece(f"{key}.bias", f"{name}.bias", (outputs,), rows)


def heads_together(heads: int, head_dim: int) -> Tensor:
    """Return (3 * heads * head_dim,) int64: our rows of q, k and v in the order head by head, each its q, k and v."""
    import torch

    rows = torch.arange(3 * heads * head_dim, device="cpu").view(3, heads, head_dim)
    return rows.transpose(0, 1).reshape(-1)
