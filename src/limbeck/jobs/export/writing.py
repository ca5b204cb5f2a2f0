"""Export of a model for other programs, checked by loading it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.text import Text

from limbeck.errors import ConfigError, RunError
from limbeck.formats.families.table import family_of
from limbeck.formats.folder import check_replaceable
from limbeck.formats.load import load_bundle, locate, save_bundle
from limbeck.formats.stored import stored_dtype
from limbeck.jobs.export.adapter import adapter_dtype, base_name, merged, write_adapter
from limbeck.jobs.export.nearness import Agreement, agreement, logits, probe, settings_lost
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Recipe, Report, facts
from limbeck.jobs.source import device_of, dtype_of
from limbeck.model.decoder import Decoder
from limbeck.storage import check_place

__all__ = ["ExportOptions", "export_model"]

_WRITTEN = ("adapter_config.json", "model.gguf")  # one of them is in a folder that holds an adapter or a GGUF file


class ExportOptions(ModelSource, Recipe):
    """A model, and the layout to write it in."""

    to: Literal["huggingface", "peft", "gguf"] = Field(
        "huggingface",
        description="layout: huggingface is what transformers opens; peft: the model's adapter alone, for its base; "
        "gguf: a file for llama.cpp",
    )
    type: Literal[
        "auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q5_k_m", "q4_k_m"
    ] = Field("auto", description="gguf: of its matrices; auto: as they are where they are quantized so, else f16")
    base: str | None = Field(
        None, description="peft: the base to name in the adapter; none: the model that the run began from"
    )
    out: str = Field(
        description="folder to write to; gguf: also a file called so", json_schema_extra={"section": "common"}
    )
    overwrite: bool = Field(False, description="replace a model that lies in the folder already")

    def claim(self) -> None:
        """Refuse a folder with anything in it; with ``overwrite`` one that holds more than a model of before."""
        out = Path(self.out).expanduser()
        one_file = self.to == "gguf" and out.suffix == ".gguf"
        folder = out.parent if one_file else out
        check_place(folder)
        if one_file and out.is_dir():
            raise ConfigError(f"{out} is a folder: name a file, or a folder without the ending .gguf")
        taken = out.exists() if one_file else folder.is_dir() and any(folder.iterdir())
        if taken and not self.overwrite:
            raise ConfigError(f"{out} is not empty: give another --out, or --overwrite to replace the model in it")
        if self.to == "huggingface":
            check_replaceable(folder)
        elif taken and not one_file and not any((folder / name).is_file() for name in _WRITTEN):
            raise ConfigError(f"{out} holds files but nothing that export wrote: give another --out")


def export_model(options: ExportOptions) -> Report:
    """Write, load back, compare.

    Raises:
        ConfigError: the folder is not empty, and ``overwrite`` was not given.
        ModelError: the model cannot be said in that layout.
        RunError: what was written does not give the source's logits.
    """
    if options.base is not None and options.to != "peft":
        raise ConfigError("'base' is named in a PEFT adapter: it needs --to peft")
    if options.to == "gguf":
        return _gguf(options)
    if options.keep_codes:
        raise ConfigError(f"the layout {options.to} holds floats, not codes: leave keep_codes out, or export to gguf")
    if options.type != "auto":
        raise ConfigError("'type' is of GGUF files: it needs --to gguf (other layouts take --dtype)")
    options.claim()
    folder, device = Path(options.out).expanduser(), device_of(options.device)
    stored = stored_dtype(locate(options.model, options.adapter)[0])
    dtype = stored if options.dtype == "auto" else dtype_of(options.dtype)
    wide = torch.float64 if stored == torch.float64 else torch.float32  # holds every stored value exactly
    source = load_bundle(options.model, wide, device, adapter=options.adapter)
    batch = probe(source.model, options.seed)
    before = logits(source.model, batch)
    if options.to == "peft":
        base = base_name(options.model, options.adapter, options.base)
        write_adapter(source, options.model, base, folder)
        written = load_bundle(base, wide, device, adapter=str(folder))
        found = agreement(before, logits(written.model, batch))
        told = settings_lost(source, written, str(folder))
        return _report(options, folder, source.model, adapter_dtype(source.model), found, batch.ids.numel(), told)
    beside, source = bool(source.deployed_specs), merged(source, options.model)
    save_bundle(
        source.model.to(dtype), source.tokenizer, folder,
        generation=source.generation, deployed_specs=source.deployed_specs, layout=options.to,
    )  # fmt: skip
    written = load_bundle(str(folder), wide, device)
    found = agreement(before, logits(written.model, batch))
    if dtype == stored and found["relative_difference"] > (1e-3 if beside else 1e-5):  # merging rounds each weight
        raise RunError(
            f"what was written to {folder} differs from {options.model} by {found['relative_difference']:.2g} of its "
            "largest logit: do not use it, and report this"
        )
    told = settings_lost(source, written, str(folder))
    return _report(options, folder, source.model, dtype, found, batch.ids.numel(), told)


def _gguf(options: ExportOptions) -> Report:
    if options.dtype != "auto":
        raise ConfigError("a GGUF file's matrices take --type (such as f16, q8_0, q4_k_m): leave --dtype out")
    from limbeck.jobs.export.gguf import export_gguf  # here, as the gguf package takes a while to import

    out = Path(options.out).expanduser()
    return export_gguf(
        options.model,
        options.adapter,
        out,
        options.type,
        options.overwrite,
        options.seed,
        keep_codes=options.keep_codes,
    )


def _report(
    options: ExportOptions,
    folder: Path,
    model: Decoder,
    dtype: torch.dtype,
    found: Agreement,
    tokens: int,
    told: list[str],
) -> Report:
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    values: dict[str, Any] = {
        "verb": options.verb,
        "source": options.model,
        "folder": str(folder),
        "format": options.to,
        "family": family_of(model.config)[0],
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": model.count_parameters(),
        "files_bytes": files,
        "bytes": sum(files.values()),
        "told": told,
        "agreement": {"probe_tokens": tokens, **found},
    }
    rows = [
        ("folder", folder),
        ("layout", f"{options.to} ({values['family']}), {values['dtype']}"),
        ("size", f"{values['bytes'] / 1e6:,.2f} MB in {len(files)} files"),
        ("logits", f"largest difference {found['max_difference']:.3g} over {tokens} tokens"),
        ("top token", f"{found['top_agreement']:.2%} agree; KL {found['kl_nats']:.3g} nats"),
    ]
    notes = [Text(sentence, style="yellow") for sentence in told]
    return Report(values, (facts(f"exported {options.model}", rows), *notes))
