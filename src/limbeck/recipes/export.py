"""``limbeck export``: a model folder for others to open, checked by opening it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, RunError
from limbeck.formats.families import family_of
from limbeck.formats.hub import resolve
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.model.decoder import Decoder
from limbeck.recipes.info import stored_dtypes
from limbeck.recipes.parts import device_of, dtype_of
from limbeck.recipes.recipe import Recipe, Report, Session, facts

__all__ = ["Agreement", "Export", "agreement"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Agreement = dict[str, float]


class Export(Recipe):
    """Write a model in a layout that other programs open, then load it back and compare its logits with the source's.

    The weights keep the dtype they are stored in unless ``--dtype`` says otherwise.
    """

    verb: ClassVar[str] = "export"
    summary: ClassVar[str] = "write a model for other programs, and check that it is the same"

    model: str = Field(description="a folder, a run or a Hub id", json_schema_extra={"positional": True})
    to: Literal["huggingface"] = Field("huggingface", description="layout: huggingface is what transformers opens")
    out: str = Field(description="folder to write to", json_schema_extra={"section": "common"})
    overwrite: bool = Field(False, description="replace a model that lies in the folder already")

    def run(self, session: Session) -> Report:
        """Write, load back, compare.

        Raises:
            ConfigError: the folder is not empty, and ``overwrite`` was not given.
            ModelError: the model cannot be said in that layout.
            RunError: what was written does not give the source's logits.
        """
        folder, device = Path(self.out).expanduser(), device_of(self.device)
        if folder.is_dir() and any(folder.iterdir()) and not self.overwrite:
            raise ConfigError(f"{folder} is not empty: give another --out, or --overwrite to replace the model in it")
        stored = _stored(resolve(self.model))
        dtype = stored if self.dtype == "auto" else dtype_of(self.dtype)
        wide = torch.float64 if stored == torch.float64 else torch.float32  # holds every stored value exactly
        source = load_bundle(self.model, wide, device)
        probe = _probe(source.model, self.seed)
        before = _logits(source.model, probe)
        save_bundle(
            source.model.to(dtype), source.tokenizer, folder,
            generation=source.generation, residues=source.residues, layout=self.to,
        )  # fmt: skip
        written = load_bundle(str(folder), wide, device)
        found = agreement(before, _logits(written.model, probe))
        if dtype == stored and found["relative_difference"] > 1e-5:
            raise RunError(
                f"what was written to {folder} differs from {self.model} by {found['relative_difference']:.2g} of its "
                "largest logit: do not use it, and report this"
            )
        return self._report(folder, source.model, dtype, found, probe.ids.numel())

    def _report(self, folder: Path, model: Decoder, dtype: torch.dtype, found: Agreement, tokens: int) -> Report:
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
            "agreement": {"probe_tokens": tokens, **found},
        }
        rows = [
            ("folder", folder),
            ("layout", f"{self.to} ({values['family']}), {values['dtype']}"),
            ("size", f"{values['bytes'] / 1e6:,.2f} MB in {len(files)} files"),
            ("logits", f"largest difference {found['max_difference']:.3g} over {tokens} tokens"),
            ("top token", f"{found['top_agreement']:.2%} agree; KL {found['kl_nats']:.3g} nats"),
        ]
        return Report(values, (facts(f"exported {self.model}", rows),))


def _stored(folder: Path) -> torch.dtype:
    """The dtype of a folder's weights: the commonest floating one, fp32 where there is none."""
    counts = {k: n for k, n in stored_dtypes(folder).items() if k in _FLOATS}
    return _FLOATS[max(counts, key=counts.__getitem__)] if counts else torch.float32


def _probe(model: Decoder, seed: int) -> Batch:
    """(4, T) random tokens, T at most 64 and at most the model's context."""
    c = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(c.vocab_size, (4, min(64, c.context)), generator=generator)
    return Batch.of_ids(ids).to(model.device)


@torch.no_grad()
def _logits(model: Decoder, batch: Batch) -> Tensor:
    """(B, T, V) logits, in the model's own dtype."""
    out: Tensor = model(batch)
    return out


def agreement(before: Tensor, after: Tensor) -> Agreement:
    """How near two sets of logits (B, T, V) are.

    Returns:
        The largest absolute difference, the same relative to the largest logit, the share of positions with the same
        top token, and KL(before || after) in nats, the mean over positions.
    """
    a, b = before.double(), after.double()
    difference = float((a - b).abs().max())
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "max_difference": difference,
        "relative_difference": difference / float(a.abs().max().clamp_min(1e-30)),
        "top_agreement": float((a.argmax(-1) == b.argmax(-1)).double().mean()),
        "kl_nats": float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0)),
    }
