from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from limbeck.config import build
from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, ModelError, RunError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.export import gguf as export_gguf
from limbeck.jobs.export.nearness import logits
from limbeck.jobs.recipe import Display
from limbeck.techniques.rtn import RTN
from limbeck.verbs.export import Export
from tests.reference.small_model import MODERN, saved


def exported(source: Path, out: Path, **over: Any) -> dict[str, Any]:
    recipe = build(Export, {"model": str(source), "out": str(out), "to": "gguf", **over})
    return dict(recipe.run(Display.silent()).values)


def rounded(source: Path, folder: Path, **grid: Any) -> Path:
    bundle = load_bundle(str(source))
    model, deployed_spec = RTN(**grid).convert(RTN(**grid).apply(bundle.model))
    assert deployed_spec is not None
    save_bundle(model, bundle.tokenizer, folder, deployed_specs=(deployed_spec,))
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_agreement_with_the_source_is_in_the_report(tmp_path: Path, family: str) -> None:
    source = saved(tmp_path / "m", hidden_size=64, ffn_width=96, **(MODERN if family == "llama" else {}))
    last = -1.0
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        values = exported(source, tmp_path / kind, type=kind)
        file = tmp_path / kind / "model.gguf"
        assert (values["architecture"], values["file"], values["bytes"]) == (family, str(file), file.stat().st_size)
        assert values["types"].keys() <= {"F32", kind.upper()} and all(
            "max_new_tokens" in told for told in values["told"]
        )
        found = values["agreement"]
        assert found["max_weight_error"] > last and (found["kl_nats"] > 0) is (kind != "f32")
        last = found["max_weight_error"]
        assert found["of"].startswith("Limbeck's own decoder on the numbers of the file")
        assert (values["llama_cpp_agreement"] is None) is (find_spec("llama_cpp") is None)
    assert gguf.GGUFReader(file).get_field("general.name").contents() == "m"  # type: ignore[union-attr]
    assert 0 < found["top_agreement"] < 1


def test_llama_cpp_s_own_agreement_stands_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "m", hidden_size=64, ffn_width=96)
    monkeypatch.setattr(export_gguf, "llama_cpp_version", lambda: "9.9")

    def run_by(file: Path, batch: Batch) -> torch.Tensor:
        assert file.is_file()
        return logits(load_bundle(str(source)).model, batch) + 1  # a shift moves no probability

    monkeypatch.setattr(export_gguf, "llama_cpp_logits", run_by)
    values = exported(source, tmp_path / "a.gguf", type="q4_0")
    theirs = values["llama_cpp_agreement"]
    assert "llama-cpp-python 9.9" in theirs["of"] and theirs["top_agreement"] == 1
    assert theirs["kl_nats"] < 1e-9 < values["agreement"]["kl_nats"]
    assert theirs["max_difference"] == pytest.approx(1, abs=1e-5)


def test_codes_survive_and_other_grids_are_told(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", hidden_size=64, ffn_width=96, **MODERN)
    values = exported(rounded(source, tmp_path / "q", bits=4), tmp_path / "a.gguf")
    assert values["file"] == str(tmp_path / "a.gguf") and values["types"].keys() == {"F32", "Q4_0"}
    assert values["agreement"]["max_weight_error"] == values["agreement"]["max_difference"] == 0
    values = exported(rounded(source, tmp_path / "q8", bits=8), tmp_path / "b.gguf", type="q8_0")
    assert "15 quantized matrices are on a grid that this type has no blocks for" in " ".join(values["told"])
    values = exported(saved(tmp_path / "n", hidden_size=16), tmp_path / "c.gguf", type="q4_1")
    assert "7 matrices have columns that do not divide into blocks of 32 and are F16" in " ".join(values["told"])
    assert values["told"][-1].endswith(" and more")


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    source, file = saved(tmp_path / "m"), tmp_path / "a.gguf"
    exported(source, file)
    for out in (file, tmp_path / "m"):
        with pytest.raises(ConfigError, match="is not empty: give another --out, or --overwrite"):
            exported(source, out)
    assert exported(source, file, type="f32", overwrite=True)["types"].keys() == {"F32"}


def test_kept_codes_are_exported_as_they_are(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", hidden_size=64, ffn_width=96, **MODERN)
    exported(source, tmp_path / "a.gguf", type="q4_0")
    kept = exported(tmp_path / "a.gguf", tmp_path / "b.gguf", keep_codes=True)
    assert kept["types"].keys() == {"F32", "Q4_0"} and kept["agreement"]["max_weight_error"] == 0
    assert len(kept["copied"]) == kept["types"]["Q4_0"]
    assert exported(tmp_path / "a.gguf", tmp_path / "c.gguf")["types"].keys() == {"F32", "F16"}


def test_options_of_other_layouts_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    with pytest.raises(ConfigError, match="the layout huggingface holds floats, not codes"):
        exported(source, tmp_path / "a", to="huggingface", keep_codes=True)
    with pytest.raises(ConfigError, match="take --type"):
        exported(source, tmp_path / "a", dtype="bf16")
    with pytest.raises(ConfigError, match="it needs --to gguf"):
        exported(source, tmp_path / "a", to="huggingface", type="q8_0")
    with pytest.raises(ConfigError, match="it needs --to peft"):
        exported(source, tmp_path / "a", base="x")
    assert not (tmp_path / "a").exists()


def test_a_wrong_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other = saved(tmp_path / "m"), saved(tmp_path / "o")
    monkeypatch.setattr(export_gguf, "read_gguf", lambda *_: load_bundle(str(other)))
    with pytest.raises(RunError, match="differs from"):
        exported(source, tmp_path / "a", type="f32")


def test_a_model_that_llama_cpp_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF has no architecture for this model"):
        exported(saved(tmp_path / "m", norm="rms"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
