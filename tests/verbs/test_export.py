from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, ModelError, RunError
from limbeck.formats.load import load_bundle
from limbeck.formats.stored import stored_dtypes
from limbeck.jobs.export import writing as export
from limbeck.jobs.export.nearness import agreement
from limbeck.jobs.recipe import Display
from limbeck.storage import write_json
from limbeck.verbs.export import Export
from tests.reference.small_model import MODERN, saved


def theirs(folder: Path, ids: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        with torch.no_grad():
            logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_opens_it_with_the_same_logits(tmp_path: Path, family: str) -> None:
    source = saved(tmp_path / "m", **(MODERN if family == "llama" else {}))
    values = Export(model=str(source), out=str(tmp_path / "hf")).run(Display.silent()).values
    assert (values["family"], values["format"], values["dtype"]) == (family, "huggingface", "float32")
    assert values["agreement"]["max_difference"] == 0 and values["agreement"]["top_agreement"] == 1
    assert values["agreement"]["kl_nats"] == 0
    assert values["bytes"] == sum(p.stat().st_size for p in (tmp_path / "hf").iterdir())
    ids = torch.randint(0, 280, (2, 20))
    with torch.no_grad():
        ours = load_bundle(str(source)).model(Batch.of_ids(ids))
    torch.testing.assert_close(theirs(tmp_path / "hf", ids), ours, atol=1e-4, rtol=0)
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["max_new_tokens"] == 7


@pytest.mark.parametrize(("stored", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")])
def test_the_stored_dtype_is_kept(tmp_path: Path, stored: torch.dtype, name: str) -> None:
    source = saved(tmp_path / "m", stored)
    values = Export(model=str(source), out=str(tmp_path / "hf")).run(Display.silent()).values
    assert set(stored_dtypes(tmp_path / "hf")) == {name}
    assert values["agreement"]["max_difference"] == 0


def test_a_cast_is_measured(tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    values = Export(model=str(source), out=str(tmp_path / "hf"), dtype="bf16").run(Display.silent()).values
    assert values["dtype"] == "bfloat16" and set(stored_dtypes(tmp_path / "hf")) == {"BF16"}
    assert 0 < values["agreement"]["max_difference"] < 0.5
    assert 0 < values["agreement"]["kl_nats"] < 0.01


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "m"), saved(tmp_path / "t", layers=1)
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is not empty: give another --out, or --overwrite"):
        Export(model=str(source), out=str(target)).run(Display.silent())
    assert (target / "model.safetensors").read_bytes() == before
    Export(model=str(source), out=str(target), overwrite=True).run(Display.silent())
    assert load_bundle(str(target)).model.config.layers == 2


def test_overwrite_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        Export(model=str(saved(tmp_path / "m")), out=str(target), overwrite=True).run(Display.silent())
    assert (target / "thesis.tex").read_text() == "years of work"


def test_what_no_family_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Export(model=str(saved(tmp_path / "m", norm="rms")), out=str(tmp_path / "hf")).run(Display.silent())
    assert not (tmp_path / "hf").exists()


def test_a_wrong_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other = saved(tmp_path / "m"), saved(tmp_path / "other")
    real = export.load_bundle
    monkeypatch.setattr(
        export,
        "load_bundle",
        lambda name, *rest, **named: real(name if name == str(source) else str(other), *rest, **named),
    )
    with pytest.raises(RunError, match="differs from"):
        Export(model=str(source), out=str(tmp_path / "hf")).run(Display.silent())


@pytest.mark.parametrize(("change", "words"), [
    ({"eos_token_id": [0, 9]}, "does not stop at [5] and"),
    ({"eos_token_id": [0, 5]}, ""),
])  # fmt: skip
def test_what_the_folder_does_not_stop_at_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    source = saved(tmp_path / "m")
    write_json(source / "generation_config.json", {"eos_token_id": [0, 5]})
    real = export.save_bundle
    monkeypatch.setattr(
        export, "save_bundle", lambda *a, generation, **named: real(*a, generation={**generation, **change}, **named)
    )
    told = Export(model=str(source), out=str(tmp_path / "hf")).run(Display.silent()).values["told"]
    assert len(told) == bool(words) and words in " ".join(told)


def test_a_folder_with_another_template_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = saved(tmp_path / "m"), export.save_bundle
    monkeypatch.setattr(
        export,
        "save_bundle",
        lambda model, tokenizer, *rest, **named: real(model, tokenizer.with_chat_template("x"), *rest, **named),
    )
    with pytest.raises(RunError, match=r"is not the source \(.* has no chat template"):
        Export(model=str(source), out=str(tmp_path / "hf")).run(Display.silent())


def test_agreement_against_the_obvious() -> None:
    a, b = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    found = agreement(a, b)
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="none").sum(-1).mean()
    assert found["kl_nats"] == pytest.approx(float(kl), rel=1e-12)
    assert found["top_agreement"] == float((a.argmax(-1) == b.argmax(-1)).double().mean())
    assert found["max_difference"] == float((a - b).abs().max())
    assert found["relative_difference"] == pytest.approx(float((a - b).abs().max() / a.abs().max()))
