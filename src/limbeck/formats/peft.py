"""PEFT adapter folders: LoRA adapters trained by peft are read, and ours written so that peft opens them (I20).

It speaks of the layers of the Hugging Face model: GPT-2's fused ``c_attn``, Llama's separate ``q_proj`` and so on.
Separate adapters of q, k and v are written for ``c_attn`` as one of their ranks' sum, the A stacked and the B
block-diagonal, with alpha raised so that the scale stays; read back, a block-diagonal B is taken apart again.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck import storage
from limbeck.config import build
from limbeck.errors import CheckpointError, ConfigError, ModelError, TechniqueError
from limbeck.formats.hub import ADAPTER
from limbeck.formats.peft_names import AdapterPlace, places, shorten
from limbeck.formats.weights import read_json
from limbeck.model.decoder import Decoder
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import LoRALinear, adapters

__all__ = ["base_of", "load_adapter", "save_adapter"]

CONFIG, TENSORS, PICKLE = ADAPTER, "adapter_model.safetensors", "adapter_model.bin"

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+?)(?:\.base_layer)?\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_HEAD = re.compile(r"(?:base_model\.model\.)?(?:lm_head|embed_out)\.base_layer\.weight")

_READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights",
    "bias",
}  # fmt: skip
# Settings that name layers (the tensors say which there are) or steer training or loading, not what is computed.
_HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_core",
    "loftq_config", "eva_config", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# Initialisations that leave the base's weights as they are; PiSSA, OLoRA and their like change the base too.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class _Adapter:
    """One layer's adapter as peft holds it: A (rank, in), B (out, rank) and its alpha."""

    a: Tensor
    b: Tensor
    alpha: float


def save_adapter(model: Decoder, lora: LoRA, folder: Path, base_name: str) -> None:
    """Write the adapters of ``model`` as a folder that peft opens on the Hugging Face form of its base.

    Args:
        model: with ``lora`` applied and not merged.
        lora: the technique that put them there.
        folder: made if missing; an earlier adapter in it is replaced.
        base_name: what peft is to load as the base: a folder or a Hub id.

    Raises:
        TechniqueError: the model has no adapter, or its base has no Hugging Face form.
        StorageError: the disk refused.
    """
    modules = adapters(model)
    if not modules:
        raise TechniqueError("the model has no LoRA adapter to write: save it before it is merged, or with merge=never")
    layers = places(model.config)
    found = {
        key: made
        for key, place in layers.items()
        if place.name in modules and (made := _to_peft(modules[place.name], place, lora)) is not None
    }
    tensors = {}
    for key, adapter in found.items():
        tensors[f"base_model.model.{key}.lora_A.weight"] = adapter.a.contiguous()
        tensors[f"base_model.model.{key}.lora_B.weight"] = adapter.b.contiguous()
    ranks = {key: adapter.a.shape[0] for key, adapter in found.items() if adapter.a.shape[0] != lora.rank}
    alphas = {key: adapter.alpha for key, adapter in found.items() if not math.isclose(adapter.alpha, lora.alpha)}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": list(shorten(dict.fromkeys(found, True), layers)),
        "rank_pattern": shorten(ranks, layers),
        "alpha_pattern": {k: _number(v) for k, v in shorten(alphas, layers).items()},
        "use_rslora": lora.scaling == "rslora",
        "fan_in_fan_out": any(layers[key].fan_in_fan_out for key in found),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    with storage.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = storage.scratch(folder / TENSORS)
        try:
            save_file(tensors, str(draft), metadata={"format": "pt"})
            storage.share(draft)
            os.replace(draft, folder / TENSORS)
        finally:
            draft.unlink(missing_ok=True)
    storage.write_json(folder / CONFIG, values)


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _to_peft(module: LoRALinear, place: AdapterPlace, lora: LoRA) -> _Adapter | None:
    """Return the adapter of those rows of ``module`` that are ``place``'s, its groups in one; None without any."""
    lefts, columns, scale = [], [], 0.0
    for g in module.groups:
        b = module.lora_b[g.name].detach()
        wide, at = b.new_zeros(place.outputs, g.rank), 0
        inside = [place.rows.start <= rows.start < place.rows.stop for rows in g.rows]
        if not any(inside):
            continue
        for rows, here in zip(g.rows, inside, strict=True):
            size = rows.stop - rows.start
            if here:
                start = rows.start - place.rows.start
                wide[start : start + size] = b[at : at + size]
            at += size
        scale = scale or g.scale  # peft has one scale a layer: the first group's, others into their B
        lefts.append(module.lora_a[g.name].detach())
        columns.append(wide * (g.scale / scale))
    if not lefts:
        return None
    a, b = torch.cat(lefts), torch.cat(columns, dim=1)
    b = b if place.order is None else b[place.order]
    return _Adapter(a.cpu(), b.cpu(), scale * _per_rank(a.shape[0], lora.scaling == "rslora"))


def _per_rank(rank: int, rslora: bool) -> float:
    """Return what alpha is divided by to give the scale."""
    return math.sqrt(rank) if rslora else rank


def base_of(folder: Path) -> str:
    """Return the base that an adapter's folder names: a Hub id or a folder, a relative one from here or from
    ``folder``.

    Raises:
        CheckpointError: its config cannot be read, or names none.
    """
    base = _read_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / CONFIG} names no base model")
    return str(folder / base) if not Path(base).is_dir() and (folder / base).is_dir() else base


def load_adapter(model: Decoder, folder: Path) -> tuple[Decoder, LoRA]:
    """Put an adapter trained by peft, or written by ``save_adapter``, beside the layers of ``model``, in place.

    Args:
        model: the adapter's base; its layers may be quantized.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The model and the ``LoRA`` that describes what it now has: only the adapters take gradients, and its ``convert``
        merges them.

    Raises:
        TechniqueError: an adapter of a kind that is not supported, or a model that has one already.
        CheckpointError: a missing, pickled or truncated file, or tensors for another base (names key and shapes).
    """
    values, tensors = _read(Path(folder))
    where = Path(folder) / TENSORS
    layers = places(model.config)
    found = _adapters(values, tensors, layers, model, where)
    rslora = bool(values.get("use_rslora", False))
    apart = {key: _apart(adapter, layers[key], rslora) for key, adapter in found.items()}
    split = all(parts is not None for parts in apart.values())
    groups: dict[tuple[str, str], _Adapter] = {}
    for key, adapter in found.items():
        name, parts = layers[key].name, apart[key] if split else None
        for label, part in (parts or {name.rpartition(".")[2]: adapter}).items():
            groups[name, label] = part
    lora = _describe(
        groups, values, layers, split, tied_head=model.config.tied and any(layers[k].name == "head" for k in found)
    )
    model = lora.apply(model)
    with torch.no_grad():
        for (name, label), adapter in groups.items():
            module = model.get_submodule(name)
            assert isinstance(module, LoRALinear)
            module.lora_a[label].copy_(adapter.a)
            module.lora_b[label].copy_(adapter.b)
    return model, lora


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: there is no {CONFIG}")
    if not (folder / TENSORS).is_file():
        pickled = (folder / PICKLE).is_file()
        reason = (
            f"only {PICKLE}, and no pickle is ever loaded: save it with safe_serialization" if pickled else "nothing"
        )
        raise CheckpointError(f"{folder} lacks {TENSORS}; beside {CONFIG} there is {reason}")
    values = _read_config(folder)
    _check_supported(values, folder / CONFIG)
    try:
        return values, load_file(str(folder / TENSORS))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / TENSORS} is truncated or no safetensors file: {reason}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG)
    except ModelError as error:
        raise CheckpointError(str(error)) from None


def _check_supported(values: Mapping[str, Any], file: Path) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise TechniqueError(f"{file} is of peft_type {kind!r}: only LORA adapters are read")
    for key, value in values.items():
        if value and key not in _READ | _HARMLESS:
            raise TechniqueError(f"{file} sets '{key}', which is not supported: only plain LoRA adapters are read")
    if values.get("bias", "none") != "none":
        raise TechniqueError(
            f"{file} trained biases too (bias: {values['bias']}), which is not supported: use bias none"
        )
    if values.get("init_lora_weights", True) not in _INITS:
        raise TechniqueError(
            f"{file} was started by {values['init_lora_weights']!r}, which changes the base's weights too: "
            "let peft convert it to a plain LoRA adapter first"
        )


def _adapters(
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, AdapterPlace],
    model: Decoder,
    where: Path,
) -> dict[str, _Adapter]:
    """Return the file's adapters by Hugging Face layer, in the model's order, every shape checked."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) is not None:
            layer = _known(match["layer"], key, layers, where)
            _check_shape(key, tensor, match["side"], layers[layer], where)
            sides.setdefault(layer, {})[match["side"]] = tensor
        elif _HEAD.fullmatch(key) is not None:
            _check_head(key, tensor, model, where)
        else:
            raise CheckpointError(f"{where} holds '{key}', which is no part of a plain LoRA adapter of a linear layer")
    if not sides:
        raise CheckpointError(f"{where} holds no adapter")
    out = {}
    for layer in (key for key in layers if key in sides):
        if len(sides[layer]) != 2:
            raise CheckpointError(f"{where} has lora_{next(iter(sides[layer]))} of '{layer}' without its other half")
        a, b = sides[layer]["A"], sides[layer]["B"]
        rank = _patterned(values.get("rank_pattern"), layer, values.get("r", 8), where)
        if not a.shape[0] == b.shape[1] == rank:
            raise CheckpointError(
                f"lora_A and lora_B of '{layer}' in {where} have shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"but its config says rank {rank:g}"
            )
        order = layers[layer].order
        b = b if order is None else b[order.argsort()]
        out[layer] = _Adapter(a, b, _patterned(values.get("alpha_pattern"), layer, values.get("lora_alpha", 8), where))
    return out


def _known(layer: str, key: str, layers: Mapping[str, AdapterPlace], where: Path) -> str:
    """``layer`` as ``layers`` spells it: adapters of a bare stack lack ``transformer.`` or ``model.``."""
    for prefix in ("", "transformer.", "model.", "gpt_neox.", "model.decoder."):
        if f"{prefix}{layer}" in layers:
            return f"{prefix}{layer}"
    first, last = list(layers)[0], list(layers)[-2]
    raise CheckpointError(
        f"{where} holds '{key}', but the model has no such layer (it has {first} to {last}): "
        "the adapter is for another base model"
    )


def _check_shape(key: str, tensor: Tensor, side: str, place: AdapterPlace, where: Path) -> None:
    shape = tuple(tensor.shape)
    fits = len(shape) == 2 and (shape[1] == place.inputs if side == "A" else shape[0] == place.outputs)
    if not fits:
        wanted = f"(rank, {place.inputs})" if side == "A" else f"({place.outputs}, rank)"
        raise CheckpointError(
            f"'{key}' in {where} has shape {shape}, but the model needs {wanted}: the adapter is for another base model"
        )


def _check_head(key: str, tensor: Tensor, model: Decoder, where: Path) -> None:
    """Beside an adapter of the head peft saves the head's own weight: it must be the one that the model has."""
    ours = getattr(model.head, "weight", None)
    same = isinstance(ours, Tensor) and tensor.shape == ours.shape and torch.equal(tensor.to(ours), ours.detach())
    if not same:
        raise CheckpointError(f"'{key}' in {where} is not the model's own head: the adapter is for another base model")


def _patterned(patterns: Any, layer: str, default: Any, where: Path) -> float:
    """Return the value of the first of ``patterns`` that matches ``layer``, by peft's own rule."""
    value = default
    for pattern, other in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                value = other
                break
        except re.error:
            raise CheckpointError(f"the config beside {where} has the pattern '{pattern}', which is no regex") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
        raise CheckpointError(f"the config beside {where} gives '{layer}' a rank or alpha of {value!r}")
    return float(value)


def _apart(adapter: _Adapter, place: AdapterPlace, rslora: bool) -> dict[str, _Adapter] | None:
    """Take an adapter of a fused layer apart where each column of B serves one part alone; None where it does not."""
    if len(place.parts) == 1:
        return dict.fromkeys(place.parts, adapter)
    used = {part: (adapter.b[rows] != 0).any(dim=0) for part, rows in place.parts.items()}
    if not bool((torch.stack(list(used.values())).sum(dim=0) == 1).all()):
        return None
    out = {}
    scale = adapter.alpha / _per_rank(adapter.a.shape[0], rslora)
    for part, columns in used.items():
        rank = int(columns.sum())
        if rank:
            b = adapter.b[place.parts[part]][:, columns]
            out[part] = _Adapter(adapter.a[columns], b, scale * _per_rank(rank, rslora))
    return out


def _describe(
    groups: Mapping[tuple[str, str], _Adapter],
    values: Mapping[str, Any],
    layers: Mapping[str, AdapterPlace],
    split: bool,
    tied_head: bool,
) -> LoRA:
    """Return the ``LoRA`` whose ``apply`` makes room for exactly these adapters."""

    def address(name: str, label: str) -> str:
        parent = name.rpartition(".")[0]
        return f"{parent}.{label}" if parent else label

    known = {
        address(place.name, label)
        for place in layers.values()
        for label in (place.parts if split else (place.name.rpartition(".")[2],))
    }
    named = {address(name, label): adapter for (name, label), adapter in groups.items()}
    rank = Counter(a.a.shape[0] for a in named.values()).most_common(1)[0][0]
    alpha = Counter(a.alpha for a in named.values()).most_common(1)[0][0]
    everywhere = dict.fromkeys(known, None)
    fields = {
        "rank": rank,
        "alpha": alpha,
        "scaling": "rslora" if values.get("use_rslora", False) else "standard",
        "dropout": values.get("lora_dropout", 0.0),
        "targets": tuple(shorten(dict.fromkeys(named, True), everywhere)),
        "split": split,
        "ranks": shorten({k: a.a.shape[0] for k, a in named.items() if a.a.shape[0] != rank}, everywhere),
        "alphas": shorten({k: a.alpha for k, a in named.items() if a.alpha != alpha}, everywhere),
        "merge": "never" if tied_head else "auto",
    }
    try:
        return build(LoRA, fields, "the adapter's config")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
