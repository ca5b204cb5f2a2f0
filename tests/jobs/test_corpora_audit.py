"""The audit of corpora: every document is looked at (I28), as the audit in memory would, and once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.audit import report as audits
from limbeck.data.audit.report import WITHIN, audit
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError
from limbeck.jobs import corpora_audit
from limbeck.jobs.corpora import CorpusSource, held_out_rows, sample_rows
from limbeck.jobs.corpora_audit import audit_corpora
from tests.reference.tiny_runs import ARCHITECTURE, run

LEAK = "this very sentence stands in the training text and in the held-out text, word for word, as nobody noticed"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


def stuffed(folder: Path) -> dict[str, CorpusSource]:
    """Two small corpora with copies of held-out text, repeats of their own, an empty and a cut document."""
    verse = "When forty winters shall besiege\nAnd dig deep trenches in thy field\nThy youth's proud livery so gazed\n"
    first = [
        f"story {i} tells of a dog who went to wood number {i * i} and came home at {i} o'clock" for i in range(60)
    ]
    first[7] = "it says that " + LEAK
    first[20], first[41] = first[3], first[3].upper() + "!"
    first[50] = first[3]
    second = [verse, " ", *(f"{'cut ' * 40}{i:03}" for i in range(4)), first[5] + " .", "STORY, " + LEAK]
    (folder / "a.txt").write_text("<|endoftext|>".join(first))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in second))
    (folder / "held.txt").write_text(f"{LEAK}<|endoftext|>{verse}and more<|endoftext|>nothing of the kind at all here")
    return {
        "a": CorpusSource(data=str(folder / "a.txt"), valid=str(folder / "held.txt")),
        "b": CorpusSource(data=str(folder / "b.jsonl"), column="body"),
    }


def looked_at(corpora: dict[str, CorpusSource], folder: Path) -> tuple[Any, Rows]:
    separator = "<|endoftext|>"
    held = held_out_rows(corpora, separator)
    assert held is not None
    said: list[str] = []
    found = audit_corpora(corpora, held, folder / "shards", separator=separator, limit=None, say=said.append)
    return found, held


@pytest.mark.parametrize("block", [1, 300, 1 << 20])
def test_the_stream_finds_what_the_whole_in_memory_does(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = stuffed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(audits, "_BLOCK_CHARACTERS", block)
        found, held = looked_at(corpora, tmp_path)
    texts = {name: list(corpus.texts("<|endoftext|>", None)) for name, corpus in corpora.items()}
    rows = Rows.of((Row(f"{n}/{i}", {"text": t}) for n, some in texts.items() for i, t in enumerate(some)), "whole")
    whole = audit(rows, {"valid": held}, within=True, fields=("text",))
    expected = tuple(f for f in whole.findings if (f.against, f.kind) != (WITHIN, "near"))
    assert found == replace(whole, findings=expected, source=found.source, labels={"valid": {}})
    kinds = {(f.against == WITHIN, f.kind) for f in found.findings}
    assert kinds == {(False, "ngram"), (False, "near"), (False, "lines"), (True, "exact"), (True, "normalised")}
    assert found.empty == ("b/1",) and found.cut == ("b/2", "b/3", "b/4", "b/5")
    by = {(f.row, f.against): f for f in found.duplicates}
    assert (by["a/50", WITHIN].other, by["a/50", WITHIN].others, by["a/50", WITHIN].kind) == ("a/3", 2, "exact")
    assert (by["a/41", WITHIN].others, by["a/41", WITHIN].kind) == (2, "normalised")
    assert by["b/6", WITHIN].other == "a/5"  # across corpora


def test_only_the_first_holders_of_an_equal_text_are_counted_as_in_memory(tmp_path: Path) -> None:
    texts = ["one text of several words"] * 70 + ["One text of several words!"] * 3
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "held.txt").write_text("something else altogether stands here")
    corpora = {"a": CorpusSource(data=str(tmp_path / "a.txt"), valid=str(tmp_path / "held.txt"))}
    found, held = looked_at(corpora, tmp_path)
    rows = Rows.of((Row(f"a/{i}", {"text": t}) for i, t in enumerate(texts)), "whole")
    whole = audit(rows, {"valid": held}, within=True, fields=("text",))
    assert found.findings == tuple(f for f in whole.findings if f.kind != "near") and len(found.findings) == 72
    assert {f.others for f in found.findings} == set(range(1, 65))


def test_what_was_found_is_kept_under_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = stuffed(tmp_path)
    first, _ = looked_at(corpora, tmp_path)
    (place,) = (tmp_path / "shards").glob("audit-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(corpora_audit, "audit_stream", lambda *_, **__: pytest.fail("looked again"))
        assert looked_at(corpora, tmp_path)[0] == first
    place.write_text(place.read_text()[:-30])  # damaged: made anew
    assert looked_at(corpora, tmp_path)[0] == first
    (tmp_path / "a.txt").write_text("another text than before")
    changed, _ = looked_at(corpora, tmp_path)
    assert changed.rows != first.rows and len(list((tmp_path / "shards").glob("audit-*.json"))) == 2


@pytest.fixture
def leaky(tmp_path: Path) -> dict[str, Any]:
    """A corpus of 1.2 MB whose held-out text stands behind the first megabyte."""
    line = "story {} of many goes on about ships and shoes and sealing wax, of cabbages and kings, for {} pages. "
    texts = [line.format(i, i * 7) * 20 for i in range(600)]
    assert sum(map(len, texts[:550])) > 1 << 20
    texts[580] = LEAK
    (tmp_path / "big.txt").write_text("\n<|endoftext|>\n".join(texts))
    (tmp_path / "held.txt").write_text(LEAK)
    return {
        "corpora": {"big": {"data": str(tmp_path / "big.txt"), "valid": str(tmp_path / "held.txt")}},
        "shards": str(tmp_path / "shards"), "vocab_size": 300, "context": 32, "batch_size": 4,
        "architecture": ARCHITECTURE, "dtype": "fp32", "probes": "off", "train": {"steps": 1, "learning_rate": 3e-3},
        "measuring": {"generate": False},
    }  # fmt: skip


def test_leakage_behind_the_first_megabyte_rings(tmp_path: Path, leaky: dict[str, Any]) -> None:
    corpora = {"big": CorpusSource(**leaky["corpora"]["big"])}
    assert LEAK not in [row.fields["text"] for row in sample_rows(corpora, "<|endoftext|>", None)]
    told = run("pretrain", out=str(tmp_path / "list"), **leaky)
    leakage = next(a for a in told["alarms"] if a["name"] == "leakage")
    assert leakage["fired"] and leakage["value"] == 1 and told["audit"]["rows"] == 600
    assert ("exact", "big/580", "big/held:0") in {(f["kind"], f["row"], f["other"]) for f in told["audit"]["findings"]}


def test_or_is_refused_before_anything_is_tokenised(tmp_path: Path, leaky: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="1 training rows of corpora big overlap with evaluation rows"):
        run("pretrain", out=str(tmp_path / "refuse"), audit="refuse", **leaky)
    assert not (tmp_path / "refuse").exists() and not list((tmp_path / "shards").glob("tokenizer-*"))
