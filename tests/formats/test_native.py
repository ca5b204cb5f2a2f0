from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import CheckpointError, ModelError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.linear import Linear
from limbeck.model.surgery import matches, replace
from limbeck.techniques.table import TECHNIQUES
from limbeck.techniques.technique import Technique, convert_all
from tests.reference.checkpoints import edit_weights
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, random_decoder

VOCAB = 280
IDS = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))


class Rounded(nn.Module):
    """int8 codes with a scale a row, and a trained factor: one tensor of each kind that a technique may keep."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("codes", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(outputs, 1, dtype=torch.float32))
        self.factor = nn.Parameter(torch.ones(outputs, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.codes * self.scale).to(x.dtype).T * self.factor


class Rounding(Technique):
    """Keep the feed-forward's last matrix as int8."""

    name: ClassVar[str] = "test-rounding"
    kind: Literal["test-rounding"] = "test-rounding"
    targets: tuple[str, ...] = ("ffn.down",)

    def _swap(self, model: Decoder, build) -> Decoder:
        replace(model, lambda name, module: isinstance(module, Linear) and matches(name, self.targets), build)
        return model

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        def build(name: str, module: Linear) -> Rounded:
            new = Rounded(module.in_features, module.out_features, module.weight.dtype)
            new.scale.copy_(module.weight.detach().abs().amax(1, keepdim=True) / 127)
            new.codes.copy_((module.weight.detach() / new.scale).round().to(torch.int8))
            return new

        return self._swap(model, build)

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        return model, self

    def training_skeleton(self, model: Decoder) -> Decoder:
        return self.deployed_skeleton(model)

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        return self._swap(model, lambda name, m: Rounded(m.in_features, m.out_features, m.weight.dtype))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setitem(TECHNIQUES, "test-rounding", Rounding)
    technique = Rounding()
    model, deployed_specs = convert_all((technique,), technique.apply(random_decoder(gpt2_config(VOCAB))))
    save_bundle(model, byte_level(VOCAB), tmp_path / "out", deployed_specs=deployed_specs)
    return tmp_path / "out", model, deployed_specs


def logits(model):
    with torch.no_grad():
        return model(Batch.of_ids(IDS))


def refused(folder, kind, *words):
    with pytest.raises(kind) as caught:
        load_bundle(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_technique_is_rebuilt_from_its_deployed_spec(saved):
    folder, model, deployed_specs = saved
    back = load_bundle(str(folder))
    assert back.deployed_specs == deployed_specs and back.deployed_specs[0].targets == ("ffn.down",)
    assert torch.equal(logits(back.model), logits(model))
    assert isinstance(back.model.get_submodule("blocks.1.ffn.down"), Rounded)
    assert back.model.head.weight is back.model.embed.weight


def test_a_technique_keeps_the_dtypes_it_fixed(saved):
    folder, model, _ = saved
    down = load_bundle(str(folder), dtype=torch.bfloat16).model.get_submodule("blocks.0.ffn.down")
    assert (down.codes.dtype, down.scale.dtype, down.factor.dtype) == (torch.int8, torch.float32, torch.bfloat16)
    assert torch.equal(down.codes, model.get_submodule("blocks.0.ffn.down").codes)


def test_a_loaded_model_is_saved_again_with_its_deployed_specs(saved, tmp_path):
    back = load_bundle(str(saved[0]))
    save_bundle(back.model, back.tokenizer, tmp_path / "again", deployed_specs=back.deployed_specs)
    assert torch.equal(logits(load_bundle(str(tmp_path / "again")).model), logits(saved[1]))


def test_deployed_specs_do_not_fit_the_hugging_face_layout(saved, tmp_path):
    _, model, deployed_specs = saved
    with pytest.raises(ModelError, match="test-rounding"):
        save_bundle(model, byte_level(VOCAB), tmp_path / "again", deployed_specs=deployed_specs, layout="huggingface")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "test-roundin"}, ["'test-roundin'", "did you mean 'test-rounding'"]),
        ({}, ["without a 'kind'"]),
        ("rounding", ["without a 'kind'"]),
        ({"kind": ["a"]}, ["without a 'kind'"]),
        ({"kind": "test-rounding", "bits": 4}, ["bits"]),
    ],
)
def test_deployed_specs_that_cannot_be(entry, words, saved):
    edit(saved[0] / "limbeck.json", deployed_specs=[entry])
    refused(saved[0], ModelError, "limbeck.json", *words)


def test_a_list_of_deployed_specs_that_is_none(saved):
    edit(saved[0] / "limbeck.json", deployed_specs={"kind": "test-rounding"})
    refused(saved[0], ModelError, "limbeck.json")


def test_lost_deployed_specs_show_as_mismatched_keys(saved):
    (saved[0] / "limbeck.json").unlink()
    refused(saved[0], CheckpointError, "blocks.0.ffn.down.weight", "model.safetensors")


def test_codes_do_not_load_from_floats(saved):
    key = "blocks.0.ffn.down.codes"
    edit_weights(saved[0], lambda tensors: {**tensors, key: tensors[key].float()})
    refused(saved[0], CheckpointError, key, "F32", "int8")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limbeck_format": 99}, ["limbeck_format 99"]),
        ({"decoder": None}, ["no 'decoder'"]),
        ({"decoder": {"vocab_size": VOCAB, "widht": 3}}, ["widht", "did you mean"]),
        ({"decoder": {"vocab_size": VOCAB, "layers": 9000}}, ["9000 layers"]),
        ({"decoder": {"vocab_size": 2**60}}, ["vocab_size"]),
        ({"decoder": {"vocab_size": VOCAB, "hidden_size": None}}, ["hidden_size"]),
        ({"decoder": {"vocab_size": VOCAB, "hidden_size": 2**19, "heads": 64, "layers": 1}}, ["shape"]),
    ],
)
def test_native_configs_that_cannot_be(values, words, saved):
    edit(saved[0] / "config.json", **values)
    refused(saved[0], ModelError, "config.json", *words)


def test_a_technique_whose_values_are_not_saved_is_a_programming_error(saved):
    """A skeleton with a buffer outside the state would come back without values: it must not pass in silence."""

    class Leaky(Rounded):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.register_buffer("lost", torch.ones(3), persistent=False)

    from limbeck.formats.pieces import TensorPiece, fill, meta, places
    from limbeck.formats.weights import WeightFiles

    model = meta(lambda: Rounding()._swap(Decoder(gpt2_config(VOCAB)), lambda n, m: Leaky(128, 32, torch.float32)))
    pieces = [TensorPiece(name, name, tuple(t.shape)) for name, t in places(model).items()]
    weights = WeightFiles(saved[0])
    with pytest.raises(TypeError, match=r"blocks\.0\.ffn\.down\.lost"):
        fill(model, pieces, weights, "cpu")
