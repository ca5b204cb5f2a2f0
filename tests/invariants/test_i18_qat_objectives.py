"""I18 under every objective: what preferences, distillation and an adapter beside it trained is what the run packed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.formats.load import load_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import QuantizedWeight, is_quantized
from limbeck.run import Run
from limbeck.techniques.qat import QAT, FakeWeight
from limbeck.techniques.technique import Technique
from tests.reference.quantized import reference_logits
from tests.reference.small_model import saved
from tests.reference.tiny_runs import run

TRAIN = {"steps": 3, "learning_rate": 1e-2, "log_every": 1, "monitor": ""}
COMMON: dict[str, Any] = {
    "limit": 40, "batch_size": 4, "dtype": "fp32", "probes": "off", "audit": "off", "train": TRAIN,
    "measuring": {"generate": False},
}  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"verb": "finetune", "data": "toy:qa", "task": {"kind": "qa"}},
    "distill": {"verb": "distill", "data": "toy:stories", "alpha": 0.0, "beta": 1.0},
    "dpo": {"verb": "dpo", "data": "toy:preferences"},
}
ADAPTER = {"kind": "lora", "rank": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return str(saved(tmp_path_factory.mktemp("m") / "start", hidden_size=32, context=256))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [[], [ADAPTER]], ids=["whole", "lora"])
@pytest.mark.parametrize("learned", [False, True], ids=["dynamic", "learned"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_objective_trained_is_what_is_packed(
    name: str, learned: bool, beside: list[Any], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    logits: list[Tensor] = []
    pack = QAT.convert

    def watched(self: QAT, model: Decoder) -> tuple[Decoder, Technique | None]:
        with torch.no_grad():
            seen.update({n: m.value().clone() for n, m in model.named_modules() if isinstance(m, FakeWeight)})
        logits.append(reference_logits(model.eval()))
        return pack(self, model)

    monkeypatch.setattr(QAT, "convert", watched)
    values = {**COMMON, **OBJECTIVES[name]}
    verb = values.pop("verb")
    values["teacher" if verb == "distill" else "model"] = source
    technique = {"kind": "qat", "bits": 4, "learned_scales": learned}
    run(verb, **values, techniques=[technique, *beside], out=str(tmp_path / "run"))
    made = load_bundle(str(tmp_path / "run"))
    assert is_quantized(made.model) and len(logits) == 1
    assert [r.name for r in made.deployed_specs] == ["qat", *(["lora"] if beside else [])]
    held = {n: m for n, m in made.model.named_modules() if isinstance(m, QuantizedWeight)}
    assert len(seen) == len(held) == 9
    for where, value in seen.items():
        assert torch.equal(held[where.replace("fake", "quantized")].decode(), value), where
    assert torch.equal(reference_logits(made.model), logits[0]), "the deployed model is the trained one"
    # it learned through the rounding; where an adapter learns, the codes are those of the start
    start, _ = pack(aware := QAT.model_validate(technique), aware.apply(load_bundle(source).model))
    before = {n: m.decode() for n, m in start.named_modules() if isinstance(m, QuantizedWeight)}
    moved = [n for n, m in held.items() if not torch.equal(before[n.replace(".base", "")], m.decode())]
    assert bool(moved) is not bool(beside)
    assert not torch.equal(reference_logits(start), logits[0])
    first = next(line["train/loss"] for line in Run.open(tmp_path / "run").metrics() if "train/loss" in line)
    if name == "dpo":  # the reference is the fake-quantized model of the start
        assert first == pytest.approx(math.log(2), rel=1e-6)
    if name == "distill":  # alone the divergence from the unquantized self, which rounding made
        assert 0 < first < 2
