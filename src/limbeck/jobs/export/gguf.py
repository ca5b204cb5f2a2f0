"""``limbeck export --to gguf``: a file for llama.cpp, read back and, where llama.cpp is at hand, run by it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from limbeck.errors import ConfigError, RunError
from limbeck.formats.gguf import GGUFReport, Type, weight_error, write_gguf
from limbeck.formats.gguf_read import read_gguf
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.export.adapter import merged
from limbeck.jobs.export.nearness import Agreement, agreement, logits, probe, settings_lost
from limbeck.jobs.export.nearness_llama import llama_cpp_logits, llama_cpp_version
from limbeck.jobs.recipe import Report, facts
from limbeck.kernels.packed import dispatch

__all__ = ["export_gguf"]


def export_gguf(
    model: str,
    adapter: str | None,
    out: Path,
    kind: Type,
    overwrite: bool,
    seed: int,
    *,
    keep_codes: bool = False,
) -> Report:
    """Write ``out`` (or ``model.gguf`` in it), read it back through the gguf package, and compare.

    The report tells whose agreement is whose: of our decoder on the file's numbers, and of llama.cpp itself, which also
    rounds activations, where llama-cpp-python can be imported.

    An adapter, named here or of the model's own, is merged first.

    Raises:
        ConfigError: there is something already, and ``overwrite`` was not given.
        ModelError: GGUF cannot say the model or its tokenizer.
        RunError: a file in which nothing was rounded does not give the source's numbers, or llama.cpp does not open it.
    """
    file = out if out.suffix == ".gguf" else out / "model.gguf"
    if not overwrite and (file.exists() or (file != out and out.is_dir() and any(out.iterdir()))):
        raise ConfigError(f"{out} is not empty: give another --out, or --overwrite to replace the model in it")
    source = merged(load_bundle(model, adapter=adapter, keep_codes=keep_codes), model)
    written = write_gguf(
        source.model, source.tokenizer, file, kind=kind, name=Path(model).name, generation=source.generation
    )
    read = read_gguf(file)
    back = read.model
    batch = probe(source.model, seed)
    with dispatch("reference"):  # the file is compared, not the kernels that run it
        wanted = logits(source.model, batch)
        found = agreement(wanted, logits(back, batch))
    error = weight_error(source.model, back)
    if written.exact and (error > 0 or found["relative_difference"] > 1e-5):
        raise RunError(f"{file} differs from {model} by {error:.2g} in a weight: do not use it, and report this")
    opened = Bundle(back, read.tokenizer, read.generation, str(file))
    told = [*_told(written), *settings_lost(source, opened, str(file))]
    program = llama_cpp_version()
    theirs = None if program is None else agreement(wanted, llama_cpp_logits(file, batch))
    types = Counter(written.types.values())
    values: dict[str, Any] = {
        "verb": "export",
        "source": model,
        "folder": str(file.parent),
        "file": str(file),
        "format": "gguf",
        "architecture": written.architecture,
        "type": kind,
        "types": dict(types),
        "copied": list(written.copied),
        "told": told,
        "parameters": back.count_parameters(),
        "bytes": file.stat().st_size,
        "agreement": {
            "of": "Limbeck's own decoder on the numbers of the file, read back, in the source's dtype",
            "probe_tokens": batch.ids.numel(),
            "max_weight_error": error,
            **found,
        },
        "llama_cpp_agreement": None
        if theirs is None
        else {
            "of": f"llama.cpp on the file (llama-cpp-python {program}), F16 cache, its own rounding of activations",
            "probe_tokens": batch.ids.numel(),
            **theirs,
        },
    }
    rows = [
        ("file", file),
        ("layout", f"gguf ({written.architecture}): {', '.join(f'{n} tensors {name}' for name, n in types.items())}"),
        ("size", f"{values['bytes'] / 1e6:,.2f} MB"),
        ("weights", f"largest difference {error:.3g}"),
        ("read back by Limbeck", _near(found, batch.ids.numel())),
        ("run by llama.cpp", _near(theirs, batch.ids.numel()) if theirs else "not measured: no llama-cpp-python here"),
    ]
    notes: list[RenderableType] = [Text(sentence, style="yellow") for sentence in told]
    return Report(values, (facts(f"exported {model}", rows), *notes))


def _near(found: Agreement, tokens: int) -> str:
    return (
        f"top token {found['top_agreement']:.2%} agree, KL {found['kl_nats']:.3g} nats, largest difference of a logit "
        f"{found['max_difference']:.3g}, over {tokens} tokens"
    )


def _told(written: GGUFReport) -> list[str]:
    """Return what the file cannot hold, and what became of matrices that could not be taken as they were."""
    told = list(written.lost)
    if written.rounded_twice:
        told.append(
            f"{len(written.rounded_twice)} quantized matrices are on a grid that this type has no blocks for and were "
            "rounded once more: quantize on the grid q8_0, q4_0 or q4_1 to keep the codes"
        )
    if written.unfit:
        told.append(
            f"{len(written.unfit)} matrices have columns that do not divide into blocks of 32 and are F16: "
            f"{', '.join(written.unfit[:3])}{' and more' if len(written.unfit) > 3 else ''}"
        )
    if written.narrow:
        kinds = sorted({written.types[key] for key in written.narrow})
        told.append(
            f"{len(written.narrow)} matrices have columns that do not divide into super-blocks of 256 and are "
            f"{' or '.join(kinds)}, as llama.cpp has them"
        )
    return told
