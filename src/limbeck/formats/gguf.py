"""GGUF files (version 3), as llama.cpp reads them: architectures ``gpt2`` and ``llama``, by the ``gguf`` package.

Norms, biases and learned positions are F32, as in files of llama.cpp's own converter; every matrix, embedding included,
has the type that was asked for. A tied head is written once, as the embedding, which llama.cpp takes for both (GPT-2's
since March 2025, its pull request 12456).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck import storage
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError
from limbeck.formats.families.table import family_of
from limbeck.formats.gguf_config import ROPE_FACTORS
from limbeck.formats.gguf_kquants import FALLBACKS, fallback, quantize
from limbeck.formats.gguf_tokenizer import add_vocabulary
from limbeck.kernels.packed_layout import Codes, unpack_int4
from limbeck.model.config import DecoderConfig, Llama3Scaling
from limbeck.model.decoder import Decoder
from limbeck.model.linear import Linear
from limbeck.model.patterns import Causal
from limbeck.model.positions import interleaved_rows, inverse_frequencies
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear

__all__ = ["GGUFTensor", "Type", "GGUFReport", "architecture", "blocks", "places", "weight_error", "write_gguf"]

Type = Literal[
    "auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q5_k_m", "q4_k_m"
]  # fmt: skip

_Kind = gguf.GGMLQuantizationType
_BLOCK = 32  # columns of a block of Q8_0, Q4_0 and Q4_1
_ROPE_LLAMA3 = "limbeck.rope.llama3"
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
    "q5_k": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "q4_k": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "q5_k_m": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
_MIXES = {"q4_k_m": _Kind.Q4_K, "q5_k_m": _Kind.Q5_K}
_FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
_PLAIN = (nn.Linear, Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a file and where it stands in the model.

    Attributes:
        key: its name in the file.
        name: dotted name of the parameter here.
        rows: (R,) int64 rows of the parameter, in the file's order; None: all as they are.
        wide: a matrix that takes the file's type; all else is F32.
    """

    key: str
    name: str
    rows: Tensor | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True)
class GGUFReport:
    """What was written.

    Attributes:
        architecture: ``gpt2`` or ``llama``.
        types: key of each tensor -> its type, such as ``Q4_0``.
        copied: keys of matrices whose codes and scales went over bit for bit.
        rounded_twice: keys of quantized matrices that were decoded and rounded to another type.
        unfit: keys of matrices whose columns do not divide into blocks, decoded and written as F16.
        lost: settings of the source that the file cannot hold, a sentence each.
        narrow: keys of matrices whose columns 256 does not divide, in the type that llama.cpp takes for those.
    """

    architecture: str
    types: dict[str, str]
    copied: tuple[str, ...]
    rounded_twice: tuple[str, ...]
    unfit: tuple[str, ...]
    lost: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """The file's numbers are those of the model in fp32: nothing was rounded."""
        return all(kind == "F32" or key in self.copied for key, kind in self.types.items())


def architecture(config: DecoderConfig) -> str:
    """Return llama.cpp's architecture that computes what ``config`` says; Qwen2 and Mistral are ``llama`` with other
    settings.

    Raises:
        ModelError: there is none.
    """
    family, reason = family_of(config)
    wanted = "gelu_tanh" if family == "gpt2" else "silu"
    if family is not None and family not in _FAMILIES:
        reason = f"no writer for {family} yet"
    elif config.rope.scaling is not None and not isinstance(config.rope.scaling, Llama3Scaling):
        reason = f"rotary scaling {config.rope.scaling.kind}"
    elif family is not None and config.activation != wanted:
        reason = f"activation {config.activation}"
    elif family is not None and any(config.pattern_at(i) != Causal() for i in range(config.layers)):
        reason = "sliding windows"
    if reason:
        raise ModelError(f"GGUF has no architecture for this model ({reason}): export to huggingface")
    return "gpt2" if family == "gpt2" else "llama"


def places(config: DecoderConfig) -> Iterator[GGUFTensor]:
    """Yield every tensor of the file, in order.

    llama.cpp's rotary pairs are (2i, 2i + 1), so query and key rows change places.
    """
    gpt2 = architecture(config) == "gpt2"
    biased = gpt2
    yield GGUFTensor("token_embd.weight", "embed.weight", wide=True)
    if gpt2:
        yield GGUFTensor("position_embd.weight", "positions.weight")
    for i in range(config.layers):
        here, there = f"blocks.{i}.", f"blk.{i}."
        yield from _pair(f"{there}attn_norm", f"{here}attention_norm", biased)
        yield from _attention(config, f"{here}attention.", there, gpt2)
        yield from _pair(f"{there}ffn_norm", f"{here}ffn_norm", biased)
        f = config.ffn_width
        if gpt2:
            yield from _pair(f"{there}ffn_up", f"{here}ffn.up", config.ffn_bias, wide=True)
        else:
            yield from _pair(f"{there}ffn_gate", f"{here}ffn.up", config.ffn_bias, torch.arange(f), wide=True)
            yield from _pair(f"{there}ffn_up", f"{here}ffn.up", config.ffn_bias, torch.arange(f, 2 * f), wide=True)
        yield from _pair(f"{there}ffn_down", f"{here}ffn.down", config.ffn_bias, wide=True)
    yield from _pair("output_norm", "norm", biased)
    if not config.tied:
        yield GGUFTensor("output.weight", "head.weight", wide=True)


def _pair(key: str, name: str, bias: bool, rows: Tensor | None = None, wide: bool = False) -> Iterator[GGUFTensor]:
    yield GGUFTensor(f"{key}.weight", f"{name}.weight", rows, wide)
    if bias:
        yield GGUFTensor(f"{key}.bias", f"{name}.bias", rows)


def _attention(c: DecoderConfig, here: str, there: str, fused: bool) -> Iterator[GGUFTensor]:
    if fused:
        yield from _pair(f"{there}attn_qkv", f"{here}qkv", c.qkv_bias, wide=True)
    else:
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        parts = {
            "attn_q": interleaved_rows(c.heads, c.head_dim),
            "attn_k": q + interleaved_rows(c.kv_heads, c.head_dim),
            "attn_v": torch.arange(q + kv, q + 2 * kv),
        }
        for part, rows in parts.items():
            yield from _pair(f"{there}{part}", f"{here}qkv", c.qkv_bias, rows, wide=True)
    yield from _pair(f"{there}attn_output", f"{here}out", c.out_bias, wide=True)


def blocks(codes: Codes) -> tuple[NDArray[np.uint8], gguf.GGMLQuantizationType] | None:
    """Return a quantized matrix (R, C) as GGUF blocks, (R, bytes), where its grid is one of theirs; else None.

    That is fp16 scales and a multiple of 32 columns that share one, in which case a scale is written once a block.
    """
    layout = codes.layout
    kinds = {("int8", False): _Kind.Q8_0, ("int4", False): _Kind.Q4_0, ("int4", True): _Kind.Q4_1}
    kind = kinds.get((layout.kind, layout.offset))
    if kind is None or layout.scale_dtype != torch.float16 or layout.columns % _BLOCK or layout.span % _BLOCK:
        return None
    shape = layout.rows, layout.columns // _BLOCK

    def spread(x: Tensor) -> NDArray[np.uint8]:
        every = x.repeat_interleave(layout.span // _BLOCK, dim=1)[:, : shape[1]] if layout.span else x
        return every.expand(shape).contiguous().view(torch.uint8).numpy().reshape(*shape, 2)

    assert codes.scales is not None
    parts = [spread(codes.scales)] + ([] if codes.zeros is None else [spread(codes.zeros)])
    if layout.kind == "int8":
        parts.append(codes.codes.contiguous().view(torch.uint8).numpy().reshape(*shape, _BLOCK))
    else:
        halves = unpack_int4(codes.codes, layout.columns).view(*shape, 2, _BLOCK // 2)
        parts.append((halves[:, :, 0] | (halves[:, :, 1] << 4)).numpy())
    return np.concatenate(parts, axis=-1).reshape(layout.rows, -1), kind


def write_gguf(
    model: Decoder,
    tokenizer: Tokenizer,
    file: Path,
    *,
    kind: Type = "auto",
    name: str = "model",
    generation: Mapping[str, Any] | None = None,
) -> GGUFReport:
    """Write ``model``, on the CPU, with its tokenizer; a file that was there before is replaced at the end.

    Args:
        model: finished; weights on a grid that GGUF has (Q8_0, Q4_0, Q4_1 and what a block of those can say) keep their
            codes bit for bit under that type.
        tokenizer: its tokenizer; every end id of it goes into the file.
        file: where to.
        kind: type of the matrices; ``auto``: of its own for a weight on such a grid, F16 for every other.
        name: of the model, for people.
        generation: values of generation_config.json, which have no place in the file; its end ids are the tokenizer's.

    Raises:
        ModelError: GGUF cannot say the model or its tokenizer.
        StorageError: the disk refused.
    """
    config, arch = model.config, architecture(model.config)
    draft = storage.scratch(file)
    writer = gguf.GGUFWriter(draft, arch)
    made = _Making(kind, config)
    try:
        lost = add_vocabulary(writer, tokenizer, config.vocab_size, generation or {})
        if isinstance(config.rope.scaling, Llama3Scaling):
            made.add(writer, ROPE_FACTORS, _rope_factors(config).numpy(), _Kind.F32)
            writer.add_array(_ROPE_LLAMA3, _llama3(config.rope.scaling))
        for place in places(config):
            made.place(writer, place, _values(model, place))
        _settings(writer, config, name, kind if kind in _MIXES else made.commonest())
        with storage.writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            draft.replace(file)
    finally:
        writer.close()
        draft.unlink(missing_ok=True)
    return GGUFReport(
        arch, made.types, tuple(made.copied), tuple(made.rounded_twice), tuple(made.unfit), lost, tuple(made.narrow)
    )


class _Making:
    """Encodes tensor by tensor, and notes what became of each."""

    def __init__(self, wanted: Type, config: DecoderConfig) -> None:
        self.wanted, self.layers, self.tied = wanted, config.layers, config.tied
        self.narrow: list[str] = []
        self.types: dict[str, str] = {}
        self.copied: list[str] = []
        self.rounded_twice: list[str] = []
        self.unfit: list[str] = []
        self._matrices: list[str] = []

    def add(self, writer: gguf.GGUFWriter, key: str, data: NDArray[Any], kind: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(key, data, raw_dtype=kind)
        self.types[key] = kind.name

    def place(self, writer: gguf.GGUFWriter, place: GGUFTensor, values: Tensor | Codes) -> None:
        if not place.wide:
            plain = values.decode() if isinstance(values, Codes) else values.float()
            self.add(writer, place.key, plain.contiguous().numpy(), _Kind.F32)
            return
        data, kind = self._matrix(place.key, values)
        self.add(writer, place.key, data, kind)
        self._matrices.append(kind.name.lower())

    def _matrix(self, key: str, values: Tensor | Codes) -> tuple[NDArray[Any], gguf.GGMLQuantizationType]:
        if isinstance(values, Codes):
            packed = blocks(values)
            if packed is not None and self.wanted in ("auto", packed[1].name.lower()):
                self.copied.append(key)
                return packed
            if self.wanted != "f32" and values.scales is not None:
                (self.unfit if values.layout.columns % _BLOCK else self.rounded_twice).append(key)
        weight = (values.decode() if isinstance(values, Codes) else values.float()).contiguous().numpy()
        asked = self._type(key)
        wanted = fallback(asked, weight.shape[1])
        if wanted == _Kind.F16 != asked:
            if key not in self.unfit:
                self.unfit.append(key)
        elif wanted != asked:
            self.narrow.append(key)
        with np.errstate(over="ignore"):
            data = quantize(weight, wanted) if wanted in FALLBACKS else gguf.quants.quantize(weight, wanted)
        if wanted == _Kind.F16 and not np.isfinite(data).all():
            raise ModelError(f"{key} holds numbers that F16 cannot: export with --type f32")
        return data, wanted

    def _type(self, key: str) -> gguf.GGMLQuantizationType:
        """Return the type that is wanted for the matrix ``key``; in a mix, llama.cpp's for its place.

        That is six bits for the head, and for values and the feed-forward's second layer in the first and the last
        eighth of the blocks and every third between.
        """
        if self.wanted not in _MIXES:
            return gguf.GGMLQuantizationType["F16" if self.wanted == "auto" else self.wanted.upper()]
        if key == ("token_embd.weight" if self.tied else "output.weight"):
            return _Kind.Q6_K
        block, kind = key.split("."), _MIXES[self.wanted]
        if block[0] != "blk":
            return kind
        if block[2] == "attn_qkv":
            return _Kind.Q5_K if kind == _Kind.Q4_K else _Kind.Q6_K
        i, eighth = int(block[1]), self.layers // 8
        more = i < eighth or i >= 7 * self.layers // 8 or (i - eighth) % 3 == 2
        return _Kind.Q6_K if more and block[2] in ("attn_v", "ffn_down") else kind

    def commonest(self) -> str:
        """Return the type of most matrices, by which a file is called."""
        return max(sorted(set(self._matrices)), key=self._matrices.count)


def _values(model: Decoder, place: GGUFTensor) -> Tensor | Codes:
    """Return the numbers of one tensor of the file, in its order of rows."""
    owner, _, leaf = place.name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf == "weight" and isinstance(module, QuantizedLinear | QuantizedEmbedding):
        codes = module.quantized.value()
        return codes if place.rows is None else codes.take(place.rows)
    if type(module) not in (*_PLAIN, QuantizedLinear):
        raise ModelError(f"{owner} is a {type(module).__name__}, which GGUF has no tensors for: merge or drop it first")
    values: Tensor = getattr(module, leaf).detach()
    return values if place.rows is None else values[place.rows]


def _settings(writer: gguf.GGUFWriter, c: DecoderConfig, name: str, kind: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(int(_FILE_TYPES[kind]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.ffn_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    if c.positions == "learned":
        writer.add_layer_norm_eps(c.norm_eps)
        return
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope.theta)


def _rope_factors(c: DecoderConfig) -> Tensor:
    """(head_dim / 2,) by how much Llama 3.1's scaling slows each rotary frequency."""
    plain = inverse_frequencies(c.rope.model_copy(update={"scaling": None}), c.head_dim)
    return (plain / inverse_frequencies(c.rope, c.head_dim)).float()


def _llama3(s: Llama3Scaling) -> list[float]:
    """Return what the factors were made of, so that they can be read back; llama.cpp passes the entry over."""
    return [s.factor, s.low_freq_factor, s.high_freq_factor, float(s.original_context)]


def weight_error(a: Decoder, b: Decoder) -> float:
    """Return the largest absolute difference of two models of one config in any weight, read as fp32."""

    def numbers(model: Decoder, place: GGUFTensor) -> Tensor:
        values = _values(model, place)
        return values.decode() if isinstance(values, Codes) else values.float()

    return max(float((numbers(a, p) - numbers(b, p)).abs().max()) for p in places(a.config))
