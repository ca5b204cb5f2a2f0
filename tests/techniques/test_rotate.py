"""Rotation: an equal function for every family that has one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.decode.step import CompiledStep
from limbeck.errors import TechniqueError
from limbeck.formats.families.table import family_of
from limbeck.formats.load import load_bundle
from limbeck.kernels import native
from limbeck.model.cache import KVCache
from limbeck.techniques.hadamard import mean_keeping, randomized, spreading
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rotate import Rotate
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import Technique, apply_all
from tests.reference.checkpoints import FAMILIES, VOCAB, save
from tests.reference.quantized import decoder, reference_logits

IDS = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(11))
ROTATED = ("llama", "mistral", "qwen", "gpt", "opt", "rope", "gemma-")
REFUSED = ("gemma2", "gemma3", "olmo2")


def random(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 60, 64, 240, 384, 576, 768])
def test_a_hadamard_matrix_has_entries_of_one_size(n: int) -> None:
    found = spreading(n, random())
    assert (found.abs() * n**0.5 - 1).abs().max() < 1e-12
    assert (found @ found.T - torch.eye(n)).abs().max() < 1e-12
    assert (found[:, 0] > 0).all()


@pytest.mark.parametrize("n", [3, 7, 18, 100, 172])
def test_other_sizes_take_a_random_block(n: int) -> None:
    found = spreading(n, random())
    assert (found @ found.T - torch.eye(n)).abs().max() < 1e-12
    assert (found[:, 0] - n**-0.5).abs().max() < 1e-12
    assert (spreading(n, random()) == found).all()
    assert (spreading(n, random(1)) != found).any()


@pytest.mark.parametrize("n", [1, 5, 24, 64])
def test_the_mean_is_kept(n: int) -> None:
    found = mean_keeping(n, random())
    assert (found @ found.T - torch.eye(n)).abs().max() < 1e-12
    assert (found.sum(dim=0) - 1).abs().max() < 1e-12
    assert (randomized(n, random()) @ randomized(n, random()).T - torch.eye(n)).abs().max() < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_answers_alike_or_is_refused(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = load_bundle(str(tmp_path), dtype).model
        wanted = model(Batch.of_ids(IDS))
        rotate = Rotate(untie=True)
        if model.config.norm_at != "before":
            assert name.startswith(REFUSED)
            with pytest.raises(TechniqueError, match="normalises what they add"):
                rotate.apply(model)
            assert torch.equal(model(Batch.of_ids(IDS)), wanted)  # refused before anything was changed
            return
        before = model.blocks[0].ffn.up.weight.clone()
        found = rotate.apply(model)(Batch.of_ids(IDS))
        assert (found - wanted).abs().max() < tolerance
        assert (model.blocks[0].ffn.up.weight - before).abs().max() > 1e-2
        assert family_of(model.config)[0] is not None  # it can be written as others read it


@torch.no_grad()
def test_the_compiled_step_runs_it() -> None:
    if native.load() is None:
        pytest.skip("no compiler")
    model = Rotate(untie=True).apply(decoder())
    ids = torch.randint(0, 53, (1, 12), generator=random())
    wanted = model(Batch.of_ids(ids))
    cache = KVCache(model.config, 1, 16)
    model(Batch.of_ids(ids[:, :8]), cache=cache)
    step = CompiledStep.of(model, cache)
    assert step is not None
    for at in range(8, 12):
        found = step.run(ids[:, at : at + 1].contiguous())
        assert (found[:, -1] - wanted[:, at]).abs().max() < 1e-4


def test_outlying_columns_round_with_less_error() -> None:
    """Four outputs of the writers thirty times the rest, as trained models have: a group's scale cannot serve both."""

    def made() -> torch.nn.Module:
        model = decoder(norm="rms", tied=False, hidden_size=64, heads=2, qkv_bias=False, out_bias=False, ffn_bias=False)
        with torch.no_grad():
            model.embed.weight[:, :4] *= 30
            for block in model.blocks:
                block.attention_norm.weight[:4] *= 30
                block.ffn_norm.weight[:4] *= 30
        return model

    def error(*techniques: Technique) -> float:
        return float((reference_logits(apply_all(techniques, made())) - reference_logits(made())).square().mean())

    assert error(Rotate()) < 1e-8
    assert error(Rotate(), RTN(bits=4)) < error(RTN(bits=4)) / 2


def test_a_tied_head_is_untied_or_refused() -> None:
    with pytest.raises(TechniqueError, match="set untie=true"):
        Rotate().apply(decoder())
    model = Rotate(untie=True).apply(decoder())
    assert not model.config.tied and model.head.weight is not model.embed.weight
    assert all(b.attention.config == model.config for b in model.blocks)


def test_the_seed_chooses_the_signs() -> None:
    weights = [Rotate(untie=True, seed=s).apply(decoder()).embed.weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("other", [RTN(bits=4), LoRA(rank=2)])
def test_weights_that_are_not_free_are_refused(other: RTN | LoRA) -> None:
    model = other.apply(decoder())
    with pytest.raises(TechniqueError, match="holds more than a weight by now: rotate goes before"):
        Rotate(untie=True).apply(model)


def test_a_gain_of_nothing_beside_a_bias_is_refused() -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight[3] = 1e-9
    wanted = reference_logits(model)
    with pytest.raises(TechniqueError, match="norm has a gain that is nearly zero beside its bias"):
        Rotate(untie=True).apply(model)
    assert torch.equal(reference_logits(model), wanted)
