"""``limbeck export``: a model folder for others to open, checked by opening it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

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
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.jobs.source import device_of, dtype_of
from limbeck.model.decoder import Decoder
from limbeck.storage import check_place

__all__ = ["Export"]

_WRITTEN = ("adapter_config.json", "model.gguf")  # one of them is in a folder that holds an adapter or a GGUF file


class Export(ModelSource, Recipe):
    """Write a model in a layout that other programs open, then load it back and compare its logits with the source's.

    The weights keep the dtype they are stored in unless ``--dtype`` says otherwise. An adapter beside the weights is
    merged into them for transformers and llama.cpp, and written without them for peft. Weights on a grid that GGUF has
    keep their codes bit for bit.
    """

    verb: ClassVar[str] = "export"
    summary: ClassVar[str] = "write a model for other programs, and check that it is the same"

    to: Literal["huggingface", "peft", "gguf"] = Field(
        "huggingface",
        description="layout: huggingface is what transformers opens; peft: the model's adapter alone, for its base; "
        "gguf: a file for llama.cpp",
    )
    type: Literal["auto", "f32", "f16", "q8_0", "q4_0", "q4_1"] = Field(
        "auto", description="gguf: of its matrices; auto: as they are where they are quantized so, else f16"
    )
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

    def run(self, session: Display) -> Report:
        """Write, load back, compare.

        Raises:
            ConfigError: the folder is not empty, and ``overwrite`` was not given.
            ModelError: the model cannot be said in that layout.
            RunError: what was written does not give the source's logits.
        """
        if self.base is not None and self.to != "peft":
            raise ConfigError("'base' is named in a PEFT adapter: it needs --to peft")
        if self.to == "gguf":
            return self._gguf()
        if self.keep_codes:
            raise ConfigError(f"the layout {self.to} holds floats, not codes: leave keep_codes out, or export to gguf")
        if self.type != "auto":
            raise ConfigError("'type' is of GGUF files: it needs --to gguf (other layouts take --dtype)")
        self.claim()
        folder, device = Path(self.out).expanduser(), device_of(self.device)
        stored = stored_dtype(locate(self.model, self.adapter)[0])
        dtype = stored if self.dtype == "auto" else dtype_of(self.dtype)
        wide = torch.float64 if stored == torch.float64 else torch.float32  # holds every stored value exactly
        source = load_bundle(self.model, wide, device, adapter=self.adapter)
        batch = probe(source.model, self.seed)
        before = logits(source.model, batch)
        if self.to == "peft":
            base = base_name(self.model, self.adapter, self.base)
            write_adapter(source, self.model, base, folder)
            written = load_bundle(base, wide, device, adapter=str(folder))
            found = agreement(before, logits(written.model, batch))
            told = settings_lost(source, written, str(folder))
            return self._report(folder, source.model, adapter_dtype(source.model), found, batch.ids.numel(), told)
        beside, source = bool(source.deployed_specs), merged(source, self.model)
        save_bundle(
            source.model.to(dtype), source.tokenizer, folder,
            generation=source.generation, deployed_specs=source.deployed_specs, layout=self.to,
        )  # fmt: skip
        written = load_bundle(str(folder), wide, device)
        found = agreement(before, logits(written.model, batch))
        if dtype == stored and found["relative_difference"] > (1e-3 if beside else 1e-5):  # merging rounds each weight
            raise RunError(
                f"what was written to {folder} differs from {self.model} by {found['relative_difference']:.2g} of its "
                "largest logit: do not use it, and report this"
            )
        told = settings_lost(source, written, str(folder))
        return self._report(folder, source.model, dtype, found, batch.ids.numel(), told)

    def _gguf(self) -> Report:
        if self.dtype != "auto":
            raise ConfigError("a GGUF file's matrices take --type (f32, f16, q8_0, q4_0, q4_1): leave --dtype out")
        from limbeck.jobs.export.gguf import export_gguf  # here, as the gguf package takes a while to import

        out = Path(self.out).expanduser()
        return export_gguf(
            self.model, self.adapter, out, self.type, self.overwrite, self.seed, keep_codes=self.keep_codes
        )

    def _report(
        self, folder: Path, model: Decoder, dtype: torch.dtype, found: Agreement, tokens: int, told: list[str]
    ) -> Report:
        files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
        values: dict[str, Any] = {
            "verb": self.verb,
            "source": self.model,
            "folder": str(folder),
            "format": self.to,
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
            ("layout", f"{self.to} ({values['family']}), {values['dtype']}"),
            ("size", f"{values['bytes'] / 1e6:,.2f} MB in {len(files)} files"),
            ("logits", f"largest difference {found['max_difference']:.3g} over {tokens} tokens"),
            ("top token", f"{found['top_agreement']:.2%} agree; KL {found['kl_nats']:.3g} nats"),
        ]
        notes = [Text(sentence, style="yellow") for sentence in told]
        return Report(values, (facts(f"exported {self.model}", rows), *notes))
