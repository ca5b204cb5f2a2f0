"""A model with its tokenizer and generation settings, from a name and to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import CheckpointError, ModelError, VocabularyError
from limbeck.formats import huggingface, native
from limbeck.formats.families.table import family_of
from limbeck.formats.folder import replacing
from limbeck.formats.hub import ADAPTER, resolve
from limbeck.formats.peft import base_of, load_adapter
from limbeck.formats.weights import SHARD_BYTES, read_json
from limbeck.model.decoder import Decoder
from limbeck.storage import write_json
from limbeck.techniques.technique import Technique

__all__ = ["Bundle", "load_bundle", "locate", "save_bundle"]

GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_BOOKKEEPING = ("_from_model_config", "transformers_version")


@dataclass(slots=True)
class Bundle:
    """A model ready to use.

    Attributes:
        model: the decoder, in evaluation mode.
        tokenizer: its tokenizer.
        generation: values of generation_config.json, or the special tokens of config.json where there is none.
        source: the name it was loaded by.
        folder: the folder or GGUF file of its weights, those of the base under an adapter; None for one never saved.
        deployed_specs: the techniques whose deployed structure the model has.
        adapter: the PEFT folder of the model's adapter, described by the last of ``deployed_specs``.
    """

    model: Decoder
    tokenizer: Tokenizer
    generation: dict[str, Any]
    source: str
    folder: Path | None = None
    deployed_specs: tuple[Technique, ...] = field(default=())
    adapter: Path | None = None


def locate(name: str, adapter: str | None = None) -> tuple[Path, Path | None]:
    """Find the folder of a model's weights, and that of the PEFT adapter to put beside them.

    A PEFT folder named as a model stands for its base, by ``base_model_name_or_path``, with the adapter.

    Raises:
        ModelError: a name leads nowhere, or to two adapters.
    """
    folder = resolve(name)
    beside = None if adapter is None else resolve(adapter)
    if beside is not None and not (beside / ADAPTER).is_file():
        raise ModelError(f"{adapter} is no PEFT adapter: there is no {ADAPTER} in it")
    if not (folder / ADAPTER).is_file():
        return folder, beside
    if beside is not None:
        raise ModelError(f"{name} is an adapter itself, and one goes on a model: give the base beside {adapter}")
    try:
        base = resolve(base_of(folder))
    except (CheckpointError, ModelError) as error:
        raise ModelError(
            f"the base of the adapter {name} cannot be found: {error}; name the base as the model, and the adapter by "
            "'adapter'"
        ) from None
    if (base / ADAPTER).is_file():
        raise ModelError(f"the base that {folder / ADAPTER} names, {base}, is an adapter too: name a model there")
    return base, folder


def load_bundle(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    adapter: str | None = None,
    keep_codes: bool = False,
) -> Bundle:
    """Load a model by name, weights strictly and tensor by tensor.

    Args:
        name: a model folder, a GGUF file, a run folder or a Hub id; or a PEFT adapter's folder, for its base with the
            adapter.
        dtype: what the weights are cast to, whatever the file holds; an adapter has float32 at least.
        device: where they go.
        adapter: a PEFT adapter to put beside the weights, whatever base its config names; only it takes gradients.
        keep_codes: keep the matrices of a GGUF file that are in Q8_0, Q4_0 or Q4_1 as codes, without a float copy.

    Raises:
        ModelError: the name leads nowhere, or to a family or setting that is not supported, or to pickles alone.
        CheckpointError: truncated, oversized or mismatched weights, or an adapter for another base.
        TechniqueError: an adapter of a kind that is not supported, or beside one that the model has already.
        VocabularyError: the tokenizer knows ids for which the embedding has no row.
    """
    folder, beside = locate(name, adapter)
    if folder.is_file():
        from limbeck.formats.gguf_read import read_gguf  # here, as the gguf package takes a while to import

        model, tokenizer, generation, deployed_specs = read_gguf(folder, dtype, device, keep_codes=keep_codes)
    else:
        if keep_codes:
            raise ModelError(f"{name} is a folder, whose weights keep their form by themselves: leave keep_codes out")
        model, tokenizer, generation, deployed_specs = _read_folder(folder, dtype, device)
    _check_rows(model, tokenizer, str(folder))
    tokenizer = tokenizer.with_ends(_ends(generation, str(folder)))
    if beside is not None:
        model, lora = load_adapter(model, beside)
        model, deployed_specs = model.eval(), (*deployed_specs, lora)
    return Bundle(model, tokenizer, generation, name, folder, deployed_specs, beside)


def _read_folder(
    folder: Path, dtype: torch.dtype, device: torch.device | str
) -> tuple[Decoder, Tokenizer, dict[str, Any], tuple[Technique, ...]]:
    values = read_json(folder / "config.json")
    deployed_specs: tuple[Technique, ...] = ()
    if values.get("model_type") == native.MODEL_TYPE:
        model, deployed_specs = native.read_model(folder, values, dtype, device)
    else:
        model = huggingface.read_model(folder, values, dtype, device)
    return model, Tokenizer.load(folder), _read_generation(folder, values), deployed_specs


def _check_rows(model: Decoder, tokenizer: Tokenizer, where: str) -> None:
    rows = model.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise VocabularyError(
            f"the tokenizer of {where} has {tokenizer.vocab_size} ids, but the model's embedding only {rows} rows"
        )


def _ends(generation: Mapping[str, Any], where: str) -> list[int]:
    """Return the end ids of the generation defaults: an id, a list of ids, or none."""
    given = generation.get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(e, int) and not isinstance(e, bool) for e in ends):
        raise ModelError(f"eos_token_id of {where} must be a token id or a list of them, not {given!r}")
    return ends


def _read_generation(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / GENERATION).is_file():
        read = read_json(folder / GENERATION)
        return {key: value for key, value in read.items() if key not in _BOOKKEEPING}
    return {key: values[key] for key in _SPECIAL if values.get(key) is not None}


def save_bundle(
    model: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    generation: Mapping[str, Any] | None = None,
    deployed_specs: tuple[Technique, ...] = (),
    shard_bytes: int = SHARD_BYTES,
    layout: Literal["auto", "huggingface", "native"] = "auto",
) -> None:
    """Write a model folder as a whole: an earlier one is replaced at the end, and stays if anything fails (I23).

    Args:
        model: the decoder, finished (``techniques.technique.convert_all``).
        tokenizer: its tokenizer.
        folder: a new path, an empty folder, or an earlier model folder.
        generation: values for generation_config.json, over the tokenizer's special tokens.
        deployed_specs: what finishing left; they need the native layout, as the structure is no longer a family's.
        shard_bytes: size from which the weights are cut into several files.
        layout: ``auto`` writes what transformers opens where a family says the model, else the native layout.

    Raises:
        ModelError: the Hugging Face layout was asked for and cannot hold the model.
        VocabularyError: the tokenizer knows ids for which the embedding has no row.
        StorageError: the disk refused, or ``folder`` holds other files.
    """
    _check_rows(model, tokenizer, str(folder))
    if layout == "huggingface" and deployed_specs:
        names = ", ".join(deployed_spec.name for deployed_spec in deployed_specs)
        raise ModelError(f"the Hugging Face layout cannot hold what {names} left in the model: use the native layout")
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    foreign = layout == "huggingface" or (
        layout == "auto" and not deployed_specs and family_of(model.config)[0] is not None
    )
    with replacing(folder) as draft:
        if foreign:
            huggingface.write_model(model, draft, special, shard_bytes)
        else:
            native.write_model(model, draft, special, deployed_specs, shard_bytes)
        write_json(draft / GENERATION, {**special, **(generation or {})})
        tokenizer.save(draft)
