"""Adapters by the command line: trained, left beside, written for peft, read as a model, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import cli
from limbeck.data.batch import Batch
from limbeck.formats.load import load_bundle
from limbeck.formats.peft import load_adapter, save_adapter
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from tests.reference.small_model import MODERN, saved

Call = Callable[..., tuple[int, dict[str, Any], str]]

DATA = ["--data", "toy:stories", "--limit", "20"]
QUICK = [*DATA, "--steps", "2", "--context", "32", "--probes", "off", "--no-generate"]
QUICK += ["--dtype", "fp32", "--learning-rate", "0.05", "--fractions", "0.6,0.2,0.2"]
MEASURE = [*DATA, "--probes", "off", "--no-generate"]
BESIDE = ["--technique", "lora", "--lora.rank", "2", "--lora.alpha", "6", "--lora.merge", "never"]
IDS = torch.randint(0, 280, (2, 20), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, report, and what people read."""
    monkeypatch.setattr(cli, "_hush", lambda: None)  # warnings stay errors in this process

    def run(*argv: object) -> tuple[int, dict[str, Any], str]:
        code = cli.main([str(a) for a in (*argv, "--json", "--quiet")])
        got = capsys.readouterr()
        return code, json.loads(got.out) if got.out else {}, got.err

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base") / "base", context=32)


def made(call: Call, *argv: object) -> dict[str, Any]:
    code, values, err = call(*argv)
    assert code == 0, err
    return values


def refused(call: Call, *argv: object) -> str:
    """One sentence, exit code 2."""
    code, values, err = call(*argv)
    sentence = err.removeprefix("limbeck: error: ").rstrip("\n")
    assert code == 2 and values == {"error": sentence, "exit_code": 2} and "\n" not in sentence, err
    return sentence


def logits(name: object, adapter: object = None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_bundle(str(name), adapter=adapter and str(adapter)).model(Batch.of_ids(IDS))
    return found


def by_peft(base: Path, folder: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(theirs, folder).eval()
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_goes_to_peft_and_comes_back(call: Call, tmp_path: Path, family: str) -> None:
    """I20 by the command line: trained here, opened by peft, used and merged here again."""
    base = saved(tmp_path / "base", context=32, **(MODERN if family == "llama" else {}))
    made(call, "finetune", "--model", base, *QUICK, *BESIDE, "--lora.targets", "q,v,mlp", "--out", tmp_path / "run")
    wanted = logits(tmp_path / "run")
    assert float((wanted - logits(base)).abs().max()) > 1e-2
    values = made(call, "export", tmp_path / "run", "--to", "peft", "--out", tmp_path / "peft")
    assert values["format"] == "peft" and values["agreement"]["max_difference"] < 1e-5
    assert sorted(values["files_bytes"]) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.testing.assert_close(by_peft(base, tmp_path / "peft"), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "peft"), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(base, tmp_path / "peft"), wanted, atol=1e-5, rtol=0)
    merged = made(call, "export", tmp_path / "peft", "--out", tmp_path / "whole")
    assert merged["format"] == "huggingface" and merged["agreement"]["relative_difference"] < 1e-4
    assert not load_bundle(str(tmp_path / "whole")).deployed_specs
    torch.testing.assert_close(logits(tmp_path / "whole"), wanted, atol=1e-4, rtol=0)


def test_an_adapter_trained_by_peft_is_a_model_of_every_verb(call: Call, tmp_path: Path, base: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=3, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        model.save_pretrained(tmp_path / "theirs")
        with torch.no_grad():
            wanted = model.eval()(input_ids=IDS).logits
    folder = tmp_path / "theirs"
    torch.testing.assert_close(logits(folder), wanted, atol=1e-4, rtol=0)
    by_name = made(call, "evaluate", folder, *MEASURE)
    by_flag = made(call, "evaluate", base, "--adapter", folder, *MEASURE)
    plain = made(call, "evaluate", base, *MEASURE)
    assert by_name["metrics"] == by_flag["metrics"] != plain["metrics"]
    adapter_bytes = (folder / "adapter_model.safetensors").stat().st_size
    assert by_name["cost"]["disk_bytes"] == plain["cost"]["disk_bytes"] + adapter_bytes  # I19
    told = made(call, "info", folder)["model"]
    assert told["adapter"] == str(folder) and told["techniques"][0]["rank"] == 3
    assert told["weights_bytes"] == by_name["cost"]["disk_bytes"]
    flags = ["--temperature", "1", "--max-new-tokens", "6", "--samples", "2"]
    one, two = (made(call, "generate", *m, "the", *flags) for m in ([folder], [base, "--adapter", folder]))
    assert one["generations"] == two["generations"] != made(call, "generate", base, "the", *flags)["generations"]


@pytest.mark.slow
def test_an_adapter_alone_is_trained_further(call: Call, tmp_path: Path, base: Path) -> None:
    made(call, "finetune", "--model", base, *QUICK, *BESIDE, "--out", tmp_path / "run")
    made(call, "export", tmp_path / "run", "--to", "peft", "--out", tmp_path / "peft")
    for name, flags in {"name": [tmp_path / "peft"], "flag": [base, "--adapter", tmp_path / "peft"]}.items():
        out = tmp_path / name
        values = made(call, "finetune", "--model", *flags, *QUICK, "--out", out)
        again = load_bundle(str(out))
        assert [type(r) for r in again.deployed_specs] == [LoRA]
        assert values["cost"]["trainable"] == sum(
            p.numel() for m in adapters(again.model).values() for s in (m.lora_a, m.lora_b) for p in s.values()
        )
        before, after = load_bundle(str(tmp_path / "peft")).model.state_dict(), again.model.state_dict()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed and all("lora_" in key for key in changed)
        made(call, "export", out, "--to", "peft", "--out", tmp_path / f"{name}-peft")
        config = json.loads((tmp_path / f"{name}-peft" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base.resolve())
    torch.testing.assert_close(logits(tmp_path / "name"), logits(tmp_path / "flag"), atol=1e-5, rtol=0)


def test_a_run_over_another_keeps_what_that_one_left_in_the_model(call: Call, tmp_path: Path, base: Path) -> None:
    """QLoRA in two runs: the grid of the first and the adapter of the second are saved, and load again."""
    made(call, "finetune", "--model", base, *QUICK, "--technique", "rtn", "--rtn.bits", "8", "--out", tmp_path / "q")
    made(call, "finetune", "--model", tmp_path / "q", *QUICK, "--technique", "lora", "--lora.rank", "2", "--out",
         tmp_path / "ql")  # fmt: skip
    both = load_bundle(str(tmp_path / "ql"))
    assert [r.name for r in both.deployed_specs] == ["rtn", "lora"]
    first = load_bundle(str(tmp_path / "q")).model.state_dict()
    second = {key.replace(".base.", "."): value for key, value in both.model.state_dict().items()}
    codes = [key for key in first if key.endswith("codes")]
    assert codes and all(torch.equal(first[key], second[key]) for key in codes)


def test_an_adapter_folder_finds_its_base_beside_itself(base: Path, tmp_path: Path) -> None:
    model = LoRA(rank=2).apply(load_bundle(str(base)).model)
    folder = tmp_path / "m" / "adapter"
    saved(tmp_path / "m" / "adapter" / "base", context=32)
    save_adapter(model, LoRA(rank=2), folder, "base")
    assert load_bundle(str(folder)).folder == folder / "base"


BAD = {
    "targets that match nothing": (
        ["--technique", "lora", "--lora.targets", "attn"],
        "LoRA target 'attn' matches no linear layer; did you mean 'attention'?",
    ),
    "rank above the layer": (
        ["--technique", "lora", "--lora.rank", "17"],
        "LoRA rank 17 does not fit blocks.0.attention.qkv (q: 16 in, 16 out): give a rank from 1 to 16",
    ),
    "a layer that does not exist": (
        ["--technique", "depth", "--depth.layers", "0,7"],
        "depth keeps layer 7, but the model's layers are 0 to 1",
    ),
    "more layers than there are": (
        ["--technique", "depth", "--depth.layers", "3"],
        "depth keeps 3 layers, but the model has 2",
    ),
    "merging into a quantized base": (
        ["--technique", "rtn,lora", "--lora.rank", "2", "--lora.merge", "always"],
        "blocks.0.attention.qkv is quantized: merging an adapter would round it to another model",
    ),
    "frozen by a pattern that matches nothing": (
        ["--technique", "freeze", "--freeze.train", "blocks.7"],
        "freeze: the pattern 'blocks.7' matches no parameter",
    ),
    "more frozen blocks than there are": (
        ["--technique", "freeze", "--freeze.count", "3"],
        "freeze is to train the last 3 blocks, but the model has 2",
    ),
    "two adapters": (["--technique", "lora,lora", "--lora.rank", "2"], "--lora.rank is ambiguous"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_techniques_are_one_sentence_before_anything_is_written(
    call: Call, base: Path, tmp_path: Path, case: str
) -> None:
    flags, sentence = BAD[case]
    assert refused(call, "finetune", "--model", base, *QUICK, *flags, "--out", tmp_path / "run").startswith(sentence)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_from_a_shell(base: Path, tmp_path: Path) -> None:
    flags = ["--technique", "lora", "--lora.targets", "attn", "--out", str(tmp_path / "run")]
    argv = [sys.executable, "-m", "limbeck", "finetune", "--model", str(base), *QUICK, *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("limbeck: error: LoRA target 'attn' matches") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora, folder = LoRA(rank=2, split=False), tmp_path_factory.mktemp("adapter")
    save_adapter(lora.apply(load_bundle(str(base)).model), lora, folder, str(base))
    return folder


def test_adapters_that_do_not_fit_are_refused(call: Call, base: Path, adapter: Path, tmp_path: Path) -> None:
    wide = saved(tmp_path / "wide", context=32, hidden_size=32)
    other = saved(tmp_path / "other", context=32, **MODERN)
    for model in (wide, other):
        sentence = refused(call, "evaluate", model, "--adapter", adapter, *MEASURE)
        assert "adapter_model.safetensors" in sentence and sentence.endswith("the adapter is for another base model")
    again = [*QUICK, "--technique", "lora", "--lora.rank", "2", "--out", tmp_path / "run"]
    assert "has an adapter already" in refused(call, "finetune", "--model", adapter, *again)
    assert "is an adapter itself" in refused(call, "evaluate", adapter, "--adapter", adapter, *MEASURE)
    assert "is no PEFT adapter" in refused(call, "evaluate", base, "--adapter", base, *MEASURE)
    lost = tmp_path / "lost"
    load, lora = load_adapter(load_bundle(str(base)).model, adapter)
    save_adapter(load, lora, lost, str(tmp_path / "gone"))
    assert "name the base as the model, and the adapter by 'adapter'" in refused(call, "info", lost)
    assert refused(call, "evaluate", base, "--adapter", tmp_path / "gone", *MEASURE).startswith("the model folder")
    save_adapter(load, lora, lost, str(adapter))
    assert "is an adapter too" in refused(call, "info", lost)


def test_an_adapter_is_exported_for_its_own_base_alone(call: Call, base: Path, adapter: Path, tmp_path: Path) -> None:
    out = ["--to", "peft", "--out", tmp_path / "out"]
    other = saved(tmp_path / "other", context=32)
    with torch.no_grad():
        assert not torch.equal(logits(other), logits(base))
    assert "would be another model" in refused(call, "export", adapter, *out, "--base", other)
    wide = saved(tmp_path / "wide", context=32, hidden_size=32)
    sentence = refused(call, "export", adapter, *out, "--base", wide)
    assert sentence.startswith(f"the adapter of {adapter} does not go on {wide}: 'base_model.")
    assert "in adapter_model.safetensors has shape (2, 16)" in sentence  # and no scratch folder is named
    assert "has no adapter beside its weights" in refused(call, "export", base, *out, "--base", base)
    assert "name it with 'base'" in refused(call, "export", base, *out)
    assert "needs --to peft" in refused(call, "export", adapter, "--out", tmp_path / "out", "--base", base)
    made(call, "finetune", "--model", base, *QUICK, "--technique", "rtn,lora", "--lora.rank", "2", "--out",
         tmp_path / "q")  # fmt: skip
    for to in (out, ["--out", tmp_path / "out"]):
        assert "weights that rtn quantized" in refused(call, "export", tmp_path / "q", *to)
    made(call, "finetune", "--model", base, *QUICK, "--technique", "depth,lora", "--depth.layers", "1", *BESIDE[2:],
         "--out", tmp_path / "d")  # fmt: skip
    assert "would be another model" in refused(call, "export", tmp_path / "d", *out)
    assert not (tmp_path / "out").exists()
