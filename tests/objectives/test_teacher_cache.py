from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data.batch import Batch, Example, collate
from limbeck.errors import CheckpointError, ConfigError, DataError, ModelError, StorageError
from limbeck.losses.divergence import ReverseKL
from limbeck.losses.terms import total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives import teacher_cache_build as writer
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher, fingerprint
from limbeck.objectives.teacher_cache import CachedTeacher, CacheHeader, CacheKey, loss_difference
from limbeck.objectives.teacher_cache_build import build_cache
from tests.reference import losses as slow

V = 40


def decoder(seed: int, vocabulary: int = V) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(vocab_size=vocabulary, context=32, layers=1, hidden_size=16, heads=2)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(15)
    return model


TEACHER = LiveTeacher(decoder(0))


def key(**changes: Any) -> CacheKey:
    values = {
        "teacher": fingerprint(TEACHER.model),
        "data": "d",
        "template": "t",
        "k": 5,
        "temperature": 0.7,
        "rows": V,
    }
    return CacheKey(**(values | changes))


def example(row: int, length: int, offset: int = 0) -> Example:
    ids = np.random.default_rng(row).integers(0, V, offset + length, dtype=np.int32)[offset:]
    return Example(row, f"r{row}", ids, np.ones(length, dtype=np.bool_), offset)


EXAMPLES = [example(3, 7), example(0, 12), example(9, 4), example(5, 10), example(5, 6, 10), example(5, 3, 20)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cache(TEACHER, EXAMPLES, tmp_path_factory.mktemp("cache") / "new" / "folder", key(), batch_size=4)


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "cache"))


def want_topk(batch: Batch, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return slow.top_k(TEACHER.model(batch), k, temperature)


def check(cached: CachedTeacher, batch: Batch) -> None:
    signal, (want, ids) = cached.signal(batch), want_topk(batch, cached.header.key.k, cached.temperature)
    real = batch.real
    assert (signal.temperature, signal.rows) == (cached.temperature, cached.header.key.rows)
    # float16 rounds each log-probability by at most 1 part in 2,048, then all are renormalised
    allowed = want[real].abs() / 2048 + 2e-3
    order = signal.ids[real] == ids[real]
    assert order.float().mean() > 0.99  # near ties may swap between batches of other width
    assert ((signal.log_probs[real] - want[real]).abs() <= allowed)[order].all()
    assert signal.tail is not None
    buckets = torch.cat((signal.log_probs, signal.tail[..., None]), dim=-1)
    torch.testing.assert_close(buckets.exp().sum(-1), torch.ones(batch.ids.shape))


def test_signal_of_plain_and_packed_batches(built: Path) -> None:
    cached = CachedTeacher(built, key())
    check(cached, collate([[e] for e in EXAMPLES]))
    check(
        cached, collate([[EXAMPLES[2], EXAMPLES[4]], [EXAMPLES[0], EXAMPLES[5], EXAMPLES[3]], [EXAMPLES[1]]], left=True)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.lists(st.sampled_from(EXAMPLES), min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_any_layout_finds_its_tokens(built: Path, rows: list[list[Example]], left: bool) -> None:
    check(CachedTeacher(built), collate(rows, multiple=8, left=left))


def test_a_truncated_example_is_served(built: Path) -> None:
    e = EXAMPLES[1]
    check(CachedTeacher(built), collate([[Example(e.row, e.id, e.ids[:5], e.target[:5])]]))


@pytest.mark.parametrize("rows", [V, 70000])
def test_ids_are_as_narrow_as_the_vocabulary_allows(rows: int, tmp_path: Path) -> None:
    teacher = LiveTeacher(decoder(0, rows))
    folder = build_cache(teacher, EXAMPLES[:2], tmp_path / "c", key(rows=rows, k=2))
    cached = CachedTeacher(folder)
    assert cached.ids.dtype == (np.uint16 if rows == V else np.uint32)
    assert (folder / "ids.bin").stat().st_size == 19 * 2 * cached.ids.dtype.itemsize
    batch = collate([[e] for e in EXAMPLES[:2]])
    with torch.no_grad():
        _, ids = slow.top_k(teacher.model(batch), 2, 0.7)
    assert (cached.signal(batch).ids[batch.real] == ids[batch.real]).float().mean() > 0.95


def test_the_whole_vocabulary_is_the_live_teacher(tmp_path: Path) -> None:
    folder = build_cache(TEACHER, EXAMPLES, tmp_path / "c", key(k=V))
    student, batch = decoder(1), collate([[e] for e in EXAMPLES])
    report = loss_difference(CachedTeacher(folder), TEACHER, student, [batch])
    assert abs(report.difference) < 2e-3 * report.live
    objective = Distillation(CachedTeacher(folder), temperature=0.7)
    total(objective(student, batch), objective.counts(batch)).backward()  # type: ignore[no-untyped-call]


def test_the_difference_in_loss_is_reported(built: Path) -> None:
    batches = [collate([[EXAMPLES[0]], [EXAMPLES[1]]]), collate([[EXAMPLES[3]]])]
    student = decoder(1)
    report = loss_difference(CachedTeacher(built), TEACHER, student, batches, ReverseKL())
    live = Distillation(TEACHER, alpha=0, beta=1, temperature=0.7, divergence=ReverseKL())
    want = sum(live(student, b)["kl"].sum.item() for b in batches) / report.tokens
    assert report.tokens == 6 + 11 + 9
    assert report.live == pytest.approx(want)
    assert 0 < report.cached < report.live and report.difference == report.cached - report.live
    with pytest.raises(DataError, match="holds no token"):
        loss_difference(CachedTeacher(built), TEACHER, student, [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "other"}, "teacher is "),
        ({"data": "other"}, "data is d, not other"),
        ({"template": "other"}, "template is t, not other"),
        ({"k": 6}, "k is 5, not 6"),
        ({"temperature": 1.0}, r"temperature is 0\.7, not 1\.0"),
        ({"rows": V - 1, "k": 4}, "k is 5, not 4, rows is 40, not 39"),
    ],
)
def test_stale(built: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"is stale: its {said}"):
        CachedTeacher(built, key(**changes))
    with pytest.raises(DataError, match=f"cache of something else: its {said}"):
        build_cache(TEACHER, EXAMPLES, built, key(**changes))


def test_other_text_or_chunks_are_refused_by_the_builder(built: Path) -> None:
    for examples in (EXAMPLES[1:], [*EXAMPLES[:5], example(5, 2, 20)], [*EXAMPLES[1:], example(4, 7)]):
        with pytest.raises(DataError, match="other text, or cut into other chunks"):
            build_cache(TEACHER, examples, built, key())


def test_batches_that_do_not_fit(built: Path) -> None:
    cached = CachedTeacher(built)
    e = EXAMPLES[3]
    joined = Example(5, "r5", np.concatenate((e.ids, EXAMPLES[4].ids)), np.ones(16, dtype=np.bool_))
    other = e.ids.copy()
    other[4] = (other[4] + 1) % V
    cases = {
        "token 0 of row 8 is in a document that begins nowhere in it": example(8, 3),
        "token 12 of row 0 lies behind the end of its document there": example(0, 14),
        "token 16 of row 5 is in a document that begins nowhere in it": example(5, 3, 16),
        "token 10 of row 5 lies behind the end of its document there": joined,
        "token 2 of row 5 is in a document that begins nowhere in it": Example(5, "r5", e.ids[2:], e.target[2:], 2),
        "token 4 of row 5 is another token": Example(5, "r5", other, e.target),
    }
    for said, bad in cases.items():
        with pytest.raises(DataError, match=f"{said}.*build it from the same rows"):
            cached.signal(collate([[EXAMPLES[0]], [bad]]))


def test_chunks_that_repeat_a_token_are_told_apart(tmp_path: Path) -> None:
    first, second = example(5, 10), example(5, 8, 9)
    cached = CachedTeacher(build_cache(TEACHER, [first, second], tmp_path / "c", key(k=V)))
    batch = collate([[first], [second]])
    check(cached, batch)
    log_probs = cached.signal(batch).log_probs
    at_end, at_begin = log_probs[0, 9], log_probs[1, 0]  # one token, after nine others and after none
    assert batch.offsets[0, 9] == batch.offsets[1, 0] == 9
    assert (at_end - at_begin).abs().max() > 0.05


def test_a_row_before_all_others(tmp_path: Path) -> None:
    folder = build_cache(TEACHER, EXAMPLES[:1], tmp_path / "c", key())
    with pytest.raises(DataError, match="token 0 of row 0 is in a document that begins nowhere"):
        CachedTeacher(folder).signal(collate([[EXAMPLES[1]]]))


class Killed(Exception):
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_killed_and_resumed_it_ends_with_the_same_bytes(after: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 1, "sync_chunks": 2}
    whole = build_cache(TEACHER, EXAMPLES, tmp_path / "whole", key(), **options)
    asked: list[int] = []

    def kill(done: int, _: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        build_cache(TEACHER, EXAMPLES, tmp_path / "c", key(), on_progress=kill, **options)
    with pytest.raises(CheckpointError, match=f"is unfinished: {after // 2 * 2} of 6 chunks"):
        CachedTeacher(tmp_path / "c")
    with open(tmp_path / "c" / "ids.bin", "ab") as torn:  # a write that the marker does not vouch for
        torn.write(b"\xff" * 7)
    build_cache(TEACHER, EXAMPLES, tmp_path / "c", key(), on_progress=lambda done, _: asked.append(done), **options)
    assert asked == list(range(after // 2 * 2 + 1, 7))
    assert files(tmp_path / "c") == files(whole)


def test_killed_before_the_header_it_starts_anew(tmp_path: Path, built: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("chunks.bin", "progress.json", "ids.bin"):
        (folder / name).write_bytes(b"torn")
    build_cache(TEACHER, EXAMPLES, folder, key(), batch_size=4)
    assert files(folder) == files(built)


def test_a_finished_cache_is_left_alone(cache: Path) -> None:
    before = files(cache)

    class Silent(LiveTeacher):
        def signal(self, batch: Batch) -> Any:
            raise AssertionError("asked again")

    build_cache(Silent(decoder(0)), EXAMPLES, cache, key())
    assert files(cache) == before


def test_runs_that_share_a_cache_and_start_together_write_it_once(tmp_path: Path, built: Path) -> None:
    asked: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def slowly(done: int, _: int) -> None:
        asked.append(done)
        inside.set()
        assert go.wait(timeout=30)

    def make() -> None:
        build_cache(TEACHER, EXAMPLES, tmp_path / "c", key(), batch_size=4, on_progress=slowly)

    runs = [threading.Thread(target=make) for _ in range(2)]
    runs[0].start()
    assert inside.wait(timeout=30)
    runs[1].start()
    runs[1].join(timeout=0.3)
    assert runs[1].is_alive()  # it waits for the first
    go.set()
    for run in runs:
        run.join(timeout=30)
    assert asked == [4, 6] and files(tmp_path / "c") == files(built)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer._Files, "append", full)
        with pytest.raises(StorageError, match="No space left on device"):
            build_cache(TEACHER, EXAMPLES, tmp_path / "c", key())
    check(CachedTeacher(build_cache(TEACHER, EXAMPLES, tmp_path / "c", key())), collate([[e] for e in EXAMPLES]))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])  # type: ignore[return-value]


def grow(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\0")  # type: ignore[return-value]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)  # type: ignore[return-value]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "cache.json").read_text())
        change(values)
        (folder / "cache.json").write_text(json.dumps(values))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((cut(n), f"{n} holds") for n in ("ids.bin", "log_probs.bin", "tokens.bin", "chunks.bin")),
        *((grow(n), f"{n} holds") for n in ("ids.bin", "log_probs.bin", "tokens.bin", "chunks.bin")),
        *((remove(n), f"{n} is missing") for n in ("ids.bin", "chunks.bin", "cache.json", "progress.json")),
        (put("cache.json", b"{"), "cannot be read"),
        (put("cache.json", b"[" * 100_000), "cannot be read"),
        (put("cache.json", b"[1]"), "holds no mapping"),
        (put("cache.json", b"\xff"), "cannot be read"),
        (put("progress.json", b'{"chunks": "all"}'), "unfinished: all of 6"),
        (edit(lambda v: v.update(version=2)), "no usable teacher cache"),
        (edit(lambda v: v.update(extra=2)), "no usable teacher cache"),
        (edit(lambda v: v["key"].update(k=41)), "more than the 40 rows"),
        (edit(lambda v: v.update(tokens=10**15)), "is damaged"),
        (edit(lambda v: v["key"].update(k=4)), "ids.bin holds"),
        (put("chunks.bin", b"\xff" * 144), "chunks.bin is damaged"),
    ],
)
def test_hostile_or_torn_folders(cache: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(cache)
    with pytest.raises(CheckpointError, match=said):
        CachedTeacher(cache)


@pytest.mark.parametrize(("name", "fill"), [("ids.bin", 0xFF), ("log_probs.bin", 0xFF), ("log_probs.bin", 0x3C)])
def test_contents_that_are_no_distribution(cache: Path, name: str, fill: int) -> None:
    size = (cache / name).stat().st_size
    (cache / name).write_bytes(bytes([fill]) * size)
    with pytest.raises(CheckpointError, match="is damaged"):
        CachedTeacher(cache).signal(collate([[EXAMPLES[0]]]))


def test_a_builder_that_finds_damage(cache: Path) -> None:
    cut("log_probs.bin")(cache)
    with pytest.raises(CheckpointError, match="less than the"):
        build_cache(TEACHER, EXAMPLES, cache, key())
    for marker in (b'{"chunks": 7}', b'{"chunks": -1}', b"{}"):
        (cache / "progress.json").write_bytes(marker)
        with pytest.raises(CheckpointError, match=r"progress\.json is damaged"):
            build_cache(TEACHER, EXAMPLES, cache, key())


def test_bad_examples(tmp_path: Path) -> None:
    for examples, said in [
        ([], "no examples"),
        ([example(5, 10), example(5, 6, 9), example(5, 2, 9)], "two chunks of row 5 begin at token 9"),
        ([example(5, 4), example(5, 4)], "two chunks of row 5 begin at token 0"),
        ([example(5, 4), example(7, 0)], "row 7 is empty"),
    ]:
        with pytest.raises(DataError, match=said):
            build_cache(TEACHER, examples, tmp_path / "c", key())
    assert not (tmp_path / "c").exists()


def test_a_teacher_with_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 40 vocabulary rows, fewer than the 41"):
        build_cache(TEACHER, EXAMPLES, tmp_path / "c", key(rows=41))


def test_padding_rows_of_the_teacher_take_no_part(tmp_path: Path, built: Path) -> None:
    wider = decoder(0, V + 3)
    with torch.no_grad():
        wider.load_state_dict(
            {
                n: torch.cat((x, torch.ones(3, 16))) if x.shape[0] == V else x
                for n, x in TEACHER.model.state_dict().items()
            }
        )
    folder = build_cache(LiveTeacher(wider), EXAMPLES, tmp_path / "c", key())
    batch = collate([[e] for e in EXAMPLES])
    got, want = CachedTeacher(folder).signal(batch), CachedTeacher(built).signal(batch)
    torch.testing.assert_close(got.log_probs, want.log_probs, rtol=2e-3, atol=2e-3)


def test_keys_check_themselves() -> None:
    with pytest.raises(ValueError, match="more than the 40 rows"):
        key(k=41)
    assert key().difference(key()) == ""
    with pytest.raises(CheckpointError, match="is missing"):
        CacheHeader.read(Path("nowhere"))
    with pytest.raises(ConfigError, match="made at temperature"):
        Distillation(_Named(), temperature=1.0)


class _Named:
    temperature = 0.7

    def signal(self, batch: Batch) -> Any:
        raise AssertionError
