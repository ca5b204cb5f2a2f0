"""The adapter side of ``limbeck export``: merged into its base for transformers, or written beside it for peft."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from limbeck.errors import CheckpointError, ModelError
from limbeck.formats.hub import ADAPTER, resolve
from limbeck.formats.load import Bundle, load_bundle, locate
from limbeck.formats.peft import base_of, save_adapter
from limbeck.model.decoder import Decoder
from limbeck.run import Run
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from limbeck.techniques.technique import Technique

__all__ = ["adapter_dtype", "base_name", "merged", "write_adapter"]


def _adapter_of(deployed_specs: tuple[Technique, ...]) -> LoRA | None:
    """Return the LoRA adapter that a model has beside its weights."""
    return next((deployed_spec for deployed_spec in deployed_specs if isinstance(deployed_spec, LoRA)), None)


def merged(bundle: Bundle, name: str) -> Bundle:
    """Merge an adapter of ``bundle`` into its weights, in place; return it as it is where it has none.

    Raises:
        ModelError: its base is quantized: the sum would be rounded to another model (I17).
    """
    lora = _adapter_of(bundle.deployed_specs)
    if lora is None:
        return bundle
    _check_plain(bundle, name)
    bundle.model, _ = lora.model_copy(update={"merge": "always"}).convert(bundle.model)
    bundle.deployed_specs, bundle.adapter = (), None
    return bundle


def _check_plain(bundle: Bundle, name: str) -> None:
    others = [deployed_spec.name for deployed_spec in bundle.deployed_specs if not isinstance(deployed_spec, LoRA)]
    if others:
        raise ModelError(
            f"the adapter of {name} was trained beside weights that {', '.join(others)} quantized: merged into them, "
            "or beside the full ones, it would make another model, so use the run as it is"
        )


def base_name(name: str, adapter: str | None, given: str | None) -> str:
    """Return what peft is to load as the base of the model ``name``: a Hub id, or the absolute path of a folder.

    Args:
        name: the model: a run, or the folder of an adapter, or any model beside ``adapter``.
        adapter: a PEFT folder that was put beside ``name``, which is the base then.
        given: the base that the user named, which goes before what a run or an adapter says.

    Raises:
        ModelError: nothing says what the base is.
    """
    base = given or (name if adapter is not None else _recorded(name))
    if base is None:
        raise ModelError(f"nothing in {name} says which model its adapter was trained on: name it with 'base'")
    beside = locate(base)[1]
    base = base if beside is None else base_of(beside)
    return str(resolve(base).resolve()) if Path(base).expanduser().is_dir() else base


def _recorded(name: str) -> str | None:
    folder = resolve(name)
    if (folder / ADAPTER).is_file():
        return base_of(folder)
    for place in (Path(name).expanduser(), folder.parent):
        if (place / "recipe.yaml").is_file():
            base = Run.open(place).recipe().get("model")
            return base if isinstance(base, str) else None
    return None


def write_adapter(bundle: Bundle, name: str, base: str, folder: Path) -> None:
    """Write the adapter of ``bundle`` as a PEFT folder for ``base``, once it is sure that both make the same model.

    Raises:
        ModelError: there is no adapter, its base is quantized, or ``base`` with it is another model.
    """
    lora = _adapter_of(bundle.deployed_specs)
    if lora is None:
        raise ModelError(f"{name} has no adapter beside its weights: train one with lora and its merge=never")
    _check_plain(bundle, name)
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(bundle.model, lora, Path(scratch), base)
        try:
            again = load_bundle(base, bundle.model.dtype, bundle.model.device, adapter=scratch).model
        except CheckpointError as error:
            reason = str(error).replace(f"in {scratch}/", "in ").replace(f"{scratch}/", "its ")
            raise ModelError(f"the adapter of {name} does not go on {base}: {reason}") from None
    ours, theirs = bundle.model.state_dict(), again.state_dict()
    different = [key for key in {**ours, **theirs} if "lora_" not in key and not _same(ours.get(key), theirs.get(key))]
    if different:
        key = different[0].replace(".base.", ".")
        raise ModelError(
            f"{key} of {name} is not that of {base}, so its adapter with that base would be another model: name the "
            "base that it was trained on with 'base', or export the whole model with --to huggingface"
        )
    save_adapter(bundle.model, lora, folder, base)


def adapter_dtype(model: Decoder) -> torch.dtype:
    """Return what the adapters of ``model`` are held in."""
    found: torch.dtype = next(p.dtype for m in adapters(model).values() for p in m.lora_a.values())
    return found


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
