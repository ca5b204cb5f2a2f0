from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.config import build
from limbeck.data.shards import Corpus, shard_key
from limbeck.errors import ConfigError, DataError
from limbeck.formats.load import load_bundle
from limbeck.jobs.corpora import CorpusSource
from limbeck.jobs.recipe import Display
from limbeck.model.presets import Architecture
from limbeck.run import Run
from limbeck.tasks.text import Text
from limbeck.train.loop import train
from limbeck.verbs.pretrain import Pretrain
from tests.reference.metrics import same_but_time
from tests.reference.tiny_runs import ARCHITECTURE, run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "corpora": {
            "stories": {"data": "toy:stories", "weight": 3, "valid": "toy:stories", "valid_limit": 5},
            "verse": {"data": "toy:verse", "weight": 1, "valid": "toy:verse", "valid_limit": 5},
        },
        "limit": 60, "shards": str(folder / "shards"), "vocab_size": 300, "context": 32, "batch_size": 4,
        "architecture": ARCHITECTURE, "dtype": "fp32", "probes": "off", "audit": "off",
        "train": {"steps": 6, "learning_rate": 3e-3, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 2},
        "measuring": {"generate": False},
        **changes,
    }  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_bundle(str(folder)).model.state_dict()


@pytest.mark.slow
def test_corpora_are_mixed_and_each_is_measured_by_itself(tmp_path: Path) -> None:
    found = run("pretrain", out=str(tmp_path / "run"), **values(tmp_path))
    lines = Run.open(tmp_path / "run").metrics()
    measured = [line for line in lines if "valid/stories/nll" in line]
    assert [line["step"] for line in measured] == [0, 3, 6]
    last = measured[-1]
    logged = next(line for line in reversed(lines) if "train/nll" in line)
    assert {"train/loss_max", "grad_norm_max", "mfu"} <= logged.keys() and 0 < logged["mfu"]
    between = sorted(last[f"valid/{name}/nll"] for name in ("stories", "verse"))
    assert between[0] < last["valid/nll"] < between[1]
    assert found["metrics"]["nats per token"]["items"] == 10
    # bits per byte by the slow way: all nats of the corpus by all its bytes
    rows = CorpusSource(data="toy:stories", valid="toy:stories", valid_limit=5).held_out("")
    assert rows is not None
    tokenizer = load_bundle(str(tmp_path / "run")).tokenizer
    texts = [str(r.fields["text"]) for r in rows]
    tokens = sum(len(tokenizer.encode(t)) + 1 for t in texts)
    bits = last["valid/stories/nll"] * tokens / sum(len(t.encode()) for t in texts) / 0.6931471805599453
    assert last["valid/stories/bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    assert (tmp_path / "cache" / "limits.json").is_file()


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_run_on_shards_ends_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I21 with shards: the order is a function of the index, so nothing of it is in the checkpoint."""
    run("pretrain", out=str(tmp_path / "whole"), **values(tmp_path))

    def on_step(step: int, _: Any) -> None:
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("limbeck.jobs.training.train", lambda *a, **k: train(*a, **{**k, "on_step": on_step}))
        run("pretrain", out=str(tmp_path / "cut"), **values(tmp_path))
    again = run("pretrain", out=str(tmp_path / "cut"), **values(tmp_path))
    assert again["training"]["resumed_from"] == 4
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], two[k]) for k in one)
    first, second = ([same_but_time(m) for m in Run.open(tmp_path / n).metrics()] for n in ("whole", "cut"))
    assert first == second


@pytest.mark.slow
def test_shards_and_tokenizer_are_shared_by_runs(tmp_path: Path) -> None:
    run("pretrain", out=str(tmp_path / "a"), **values(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.*") if p.is_file()}
    run("pretrain", out=str(tmp_path / "b"), **values(tmp_path, seed=1))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.*") if p.is_file()} == before
    file = next((tmp_path / "shards").rglob("00000.shard"))
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(DataError, match=r"00000\.shard .*cut short"):
        run("pretrain", out=str(tmp_path / "c"), **values(tmp_path))


def test_parquet_is_read_by_split_and_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"book": ["one", "two", None, "four"], "split": ["train", "valid", "train", "train"]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    corpus = CorpusSource(data=str(tmp_path / "b.parquet"), split="train", column="book")
    assert list(corpus.texts("", None)) == ["one", "four"]
    assert list(corpus.texts("", 1)) == ["one"]
    with pytest.raises(DataError, match="no column 'text'"):
        list(CorpusSource(data=str(tmp_path / "b.parquet")).texts("", None))
    assert corpus.content("", None) != corpus.content("", 1)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable parquet"):
        list(CorpusSource(data=str(tmp_path / "bad.parquet")).texts("", None))


HUB = [
    {"body": f"text {i} of the hub, which tells of {w}", "id": i} for i, w in enumerate("cats dogs owls".split() * 9)
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A Hub of one data set, ``owner/name``, with the splits ``train`` and ``test``; returns what was asked for."""
    import datasets

    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        splits = {"train": HUB, "test": [{"body": "a held-out text of the hub", "id": 0}]}
        return datasets.Dataset.from_list(splits[split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_corpus_by_hub_id(tmp_path: Path, hub: list[tuple[str, str | None, str]]) -> None:
    corpus = {"data": "owner/name:plain", "column": "body", "valid": "owner/name:plain", "valid_split": "test"}
    told = values(tmp_path, corpora={"hub": corpus}, limit=None)
    found = run("pretrain", out=str(tmp_path / "run"), **told)
    assert found["data"]["valid"]["rows"] == 1 and found["data"]["train"]["rows"] == len(HUB)
    assert {split for _, _, split in hub} == {"train", "test"} and {n for n, *_ in hub} == {"owner/name"}
    (folder,) = (tmp_path / "shards").glob("hub-*")
    tokenizer = load_bundle(str(tmp_path / "run")).tokenizer
    source = CorpusSource(**corpus)
    separator = Pretrain.model_fields["separator"].default
    key = shard_key(source.content(separator, None), tokenizer, begin=Text().begins(tokenizer), end=True)
    assert folder.name == f"hub-{key[:16]}"
    kept = Corpus("hub", folder, key)
    begin = [tokenizer.bos_id] if Text().begins(tokenizer) else []
    ids = [int(i) for _, _, some in kept.spans(0, kept.tokens) for i in some]
    assert ids == [i for row in HUB for i in [*begin, *tokenizer.encode(str(row["body"])), tokenizer.eos_id]]


def test_the_hash_of_a_hub_corpus_is_of_its_documents_and_split(
    hub: list[tuple[str, str | None, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def content(**changes: Any) -> str:
        return CorpusSource(**{"data": "owner/name", "column": "body", **changes}).content("", None)

    first = content()
    assert first == content() and len({first, content(split="test"), content(column="id")}) == 3
    assert set(hub) == {("owner/name", None, "train"), ("owner/name", None, "test")}
    monkeypatch.setitem(HUB[3], "body", "another text")
    assert content() != first
    with pytest.raises(DataError, match="its split 'nothing' cannot be read"):
        content(split="nothing")


def test_a_budget_of_tokens_and_a_plan_for_another_device(tmp_path: Path) -> None:
    changes = {"tokens": 10_000, "train": {"learning_rate": 1e-3}, "dry_run": True, "planned_rate": 1e12}
    found = run("pretrain", **values(tmp_path, **changes))["expected"]
    assert found["steps"] == -(-10_000 // (4 * 32))
    assert found["tokens"] == found["steps"] * 4 * 32
    assert found["seconds"] == pytest.approx(found["flops"] / 1e12)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": "toy:stories"}, "either 'data'"),
        ({"corpora": {}}, "either 'data'"),
        ({"audit": "drop"}, "no document is left out"),
        ({"valid": "toy:stories"}, "held-out text themselves"),
        ({"tokens": 5}, "tokens excludes steps"),
        ({"planned_rate": 1e12}, "dry-run"),
        ({"task": {"kind": "qa"}}, "task 'text'"),
        ({"corpora": {}, "data": "toy:stories", "tokens": 5}, "tokens needs corpora"),
        ({"tokens": 5, "train": {}, "context": None}, "needs 'context'"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        build(Pretrain, values(tmp_path, **changes)).run(Display.silent())


ARMS: list[dict[str, Any]] = [
    {}, {"positions": "learned"}, {"norm": "layer"}, {"gated": False, "activation": "gelu"}, {"kv_heads": 2},
    {"tied": False},
]  # fmt: skip


@pytest.mark.parametrize("changes", ARMS)
def test_variants_reach_equal_parameters(changes: dict[str, Any]) -> None:
    from limbeck.model.decoder import Decoder

    shape = {"preset": "toy", "layers": 3, "hidden_size": 64, "heads": 4, "kv_heads": 4, "parameters": 200_000}
    config = Architecture(**{**shape, **changes}).config(600)
    assert abs(Decoder(config).count_parameters() - 200_000) <= 2_000


def test_the_253m_preset_has_the_published_size() -> None:
    """Embedding, and in each layer attention, SwiGLU and two norms, and the last norm, by hand."""
    from limbeck.model.decoder import Decoder

    with torch.device("meta"):
        found = Decoder(Architecture(preset="253m").config(50_257)).count_parameters()
    layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024
    assert found == 50_257 * 1024 + 12 * layer + 1024 == 252_815_360
    assert round(found / 1e6) == 253


def test_a_size_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match="within 1 %"):
        Architecture(layers=2, hidden_size=64, heads=4, parameters=1000).config(600)


def test_sinks_stand_beside_a_window() -> None:
    pattern = json.loads(Architecture(window=16, sinks=4).config(300).model_dump_json())["pattern"]
    assert pattern == {"kind": "sliding", "window": 16, "sinks": 4, "sink_distance": "true"}
    with pytest.raises(ConfigError, match="beside a window"):
        build(Architecture, {"sinks": 4}, "a test")


def test_a_corpus_may_have_its_own_separator(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text(" = One = \n first words\n = Two = \n second words\n")
    plain, own = CorpusSource(data=str(file)), CorpusSource(data=str(file), separator="\n = ", valid=str(file))
    assert len(list(plain.texts("<|endoftext|>", None))) == 1
    assert list(own.texts("<|endoftext|>", None)) == ["= One = \n first words", "Two = \n second words"]
    assert plain.content("<|endoftext|>", None) != own.content("<|endoftext|>", None)
    assert own.content("a", None) == own.content("b", None)
    held_out = own.held_out("<|endoftext|>")
    assert held_out is not None and len(held_out) == 2
