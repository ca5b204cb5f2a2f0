"""Heads of classes: what they read, putting one on a model, saving and loading it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.batch import Batch, collate
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, ModelError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.recipe import Display
from limbeck.model.config import Classes, DecoderConfig
from limbeck.model.heads import class_logits, classes_of, last_column, mean_pool, with_classes
from limbeck.tasks.classification import encode_texts
from limbeck.tasks.text import Text
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import apply_all, convert_all
from limbeck.verbs.distill import Distill
from tests.reference.task_models import class_rows, small, tokenizer

TWO = Classes(labels=("bad", "good"))


@pytest.mark.parametrize("left", [False, True])
def test_pool_reads_real_tokens_only(left: bool) -> None:
    texts = ["good", "the plot of this film is good", "a"]
    examples, _ = encode_texts(class_rows([0, 1, 0]), texts, [0, 1, 0], tokenizer(), 64)
    batch = collate([[e] for e in examples], left=left)
    hidden = torch.randn(3, batch.ids.shape[1], 5, dtype=torch.float64)
    found, last = mean_pool(hidden, batch), last_column(batch)
    for i in range(3):
        real = hidden[i][batch.real[i]]
        assert torch.allclose(found[i], real.mean(dim=0), atol=1e-12)
        assert torch.equal(hidden[i, last[i]], real[-1])


@pytest.mark.parametrize("how", ["last", "mean"])
def test_padding_changes_no_class(how: str) -> None:
    model = with_classes(small(), Classes(labels=TWO.labels, pool=how)).double()  # type: ignore[arg-type]
    ids = torch.randint(0, 300, (1, 9))
    wide = torch.cat([ids, torch.full((1, 6), 7)], dim=1)
    alone = class_logits(model, Batch.of_ids(ids), how)  # type: ignore[arg-type]
    padded = class_logits(model, Batch.of_ids(wide, [9]), how)  # type: ignore[arg-type]
    assert alone.shape == (1, 2)
    assert torch.allclose(alone, padded, atol=1e-12)


def test_a_head_replaces_that_of_tokens_and_leaves_the_embedding() -> None:
    model = small()
    embedding = model.embed.weight.detach().clone()
    head = with_classes(model, TWO).head
    assert head.weight.shape == (2, 16) and not head.bias.any()
    assert torch.equal(model.embed.weight, embedding)
    assert model.config.tied is False and model.config.head_rows == 2
    assert model.flops_per_token(8) < small().flops_per_token(8)


def test_the_same_classes_keep_their_head_and_others_are_refused() -> None:
    model = with_classes(small(), TWO)
    head = model.head
    assert with_classes(model, TWO).head is head
    with pytest.raises(ConfigError, match="has a head for the classes bad, good .last pool., and the classes a, b"):
        with_classes(model, Classes(labels=("a", "b")))
    with pytest.raises(ConfigError, match="fine-tune it on the task first"):
        classes_of(small())


def test_names_of_classes_are_distinct_and_a_head_of_classes_is_never_tied() -> None:
    with pytest.raises(ValueError, match="two classes have one name"):
        Classes(labels=("a", "a"))
    with pytest.raises(ValueError, match="set tied to false"):
        DecoderConfig(vocab_size=10, classes=TWO)


@pytest.mark.parametrize("techniques", [(), (RTN(bits=8),), (Freeze(train=("head",)),), (LoRA(rank=2),)])
def test_saved_and_loaded_it_tells_the_same(techniques: tuple, tmp_path: Path) -> None:
    model, deployed_specs = convert_all(techniques, apply_all(techniques, with_classes(small(), TWO)))
    batch = Batch.of_ids(torch.randint(0, 300, (3, 8)), [8, 5, 2])
    before = class_logits(model, batch, "last")
    save_bundle(model, tokenizer(), tmp_path / "m", deployed_specs=deployed_specs)
    bundle = load_bundle(str(tmp_path / "m"))
    assert bundle.model.config.classes == TWO
    assert torch.equal(class_logits(bundle.model, batch, "last"), before)


def test_what_needs_tokens_is_refused(tmp_path: Path) -> None:
    model = with_classes(small(), TWO)
    with pytest.raises(ConfigError, match="tells 2 classes: it cannot generate text"):
        generate(model, tokenizer(), [[5]], Decoding(max_new_tokens=2))
    with pytest.raises(ConfigError, match="classification head .bad, good., and task 'text' needs one of next tokens"):
        Text().check(model)
    with pytest.raises(ModelError, match="no Hugging Face family says this model .a head of classes"):
        save_bundle(model, tokenizer(), tmp_path / "m", layout="huggingface")
    for name in ("base", "told"):
        save_bundle(small(), tokenizer(), tmp_path / name)
    distil = Distill.model_validate(
        {
            "teacher": str(tmp_path / "base"),
            "model": str(tmp_path / "told"),
            "data": "toy:sentiment",
            "limit": 60,
            "task": {"kind": "sentiment", "labels": ["0", "1"]},
            "train": {"steps": 1},
            "out": str(tmp_path / "run"),
        }
    )
    with pytest.raises(ConfigError, match="distillation teaches the next token"):
        distil.run(Display.silent())


def test_freeze_trains_the_head_alone_and_lora_the_head_beside_its_adapters() -> None:
    frozen = Freeze(train=("head",)).apply(with_classes(small(), TWO))
    assert [n for n, p in frozen.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    adapted = LoRA(rank=2).apply(with_classes(small(), TWO))
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all("lora_" in n for n in trained - {"head.weight", "head.bias"})
    plain = LoRA(rank=2).apply(small(tied=False))
    assert "head.weight" not in {n for n, p in plain.named_parameters() if p.requires_grad}
