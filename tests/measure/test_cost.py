from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import DataError
from limbeck.measure import cost as module
from limbeck.measure.cost import (
    SpeedProtocol,
    cost,
    disk_bytes,
    folder_bytes,
    peak_memory,
    peak_memory_bytes,
    speed,
)
from limbeck.storage import plain
from tests.reference.twins import gpt2_config, llama_config, random_decoder

QUICK = SpeedProtocol(prompt_tokens=4, new_tokens=3, repeats=2)


def test_bytes_on_disk_are_those_of_the_weight_files(tmp_path):
    save_file({"a": torch.zeros(7, 3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("abc")
    weights = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert disk_bytes(tmp_path) == weights > 26 * 4
    assert folder_bytes(tmp_path) == weights + 2 + 3
    with pytest.raises(DataError, match="no weight files"):
        disk_bytes(tmp_path / "sub")
    with pytest.raises(DataError, match="no model folder"):
        disk_bytes(tmp_path / "none")


def test_peak_memory_is_that_of_the_block():
    big = np.ones(60_000_000)  # 480 MB, a peak before the block
    del big
    with peak_memory() as peak:
        x = np.ones(30_000_000)  # 240 MB; the kernel may take tens of others back meanwhile
        del x
    assert 150e6 < peak.grown_bytes < 400e6
    assert peak.peak_bytes >= peak.before_bytes
    assert abs(peak_memory_bytes() - peak.peak_bytes) < 50e6


def test_peak_memory_where_there_is_no_proc(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("no such file")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with peak_memory() as peak:
        pass
    assert peak_memory_bytes() >= peak.peak_bytes >= most and peak.grown_bytes < 50e6
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert peak_memory_bytes() < most  # bytes there, not kilobytes


def test_speed_names_what_it_rests_on():
    model = random_decoder(gpt2_config(50)).train()
    found = speed(model, QUICK)
    assert model.training
    assert 0 < found["decode_ms_fastest"] <= found["decode_ms_per_token"] <= found["decode_ms_slowest"]
    assert found["tokens_per_second"] == pytest.approx(1e3 / found["decode_ms_per_token"]) and found["prefill_ms"] > 0
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["cpu"]
    assert (found["dtype"], found["device"]) == ("float32", "cpu")
    assert found["protocol"] == {"prompt_tokens": 4, "new_tokens": 3, "batch_size": 1, "repeats": 2, "warm_up": 1}


def test_speed_counts_every_token_of_the_batch(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5).tolist())
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    found = speed(random_decoder(llama_config(50)), QUICK.model_copy(update={"batch_size": 4}))
    assert found["prefill_ms"] == 500 and found["decode_ms_per_token"] == 250  # two steps in half a second
    assert found["tokens_per_second"] == 4 / 0.25


def test_protocol_is_fitted_to_the_context():
    p = SpeedProtocol(prompt_tokens=64, new_tokens=32)
    assert p.fitted(96) is p
    short = p.fitted(48)
    assert (short.prompt_tokens, short.new_tokens) == (32, 16)
    assert p.fitted(3).new_tokens == 2 and p.fitted(3).prompt_tokens == 1
    assert speed(random_decoder(gpt2_config(50, context=8)), QUICK)["protocol"]["prompt_tokens"] == 4
    assert speed(random_decoder(gpt2_config(50, context=5)), QUICK)["protocol"]["prompt_tokens"] == 3


def test_cost_of_a_model(tmp_path):
    model = random_decoder(gpt2_config(50))
    save_file({k: v for k, v in model.state_dict().items() if k != "head.weight"}, tmp_path / "model.safetensors")
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    frozen = sum(p.numel() for p in model.blocks[0].parameters())
    found = cost(model, tmp_path, training={"tokens": 10, "seconds": 2.5}, protocol=QUICK)
    total = sum(p.numel() for p in model.parameters())
    assert (found.parameters, found.trainable) == (total, total - frozen)
    assert found.memory_bytes == 4 * total <= found.disk_bytes == found.folder_bytes
    assert found.flops_per_token == model.flops_per_token(64) and found.kv_bytes_per_token == 2 * 2 * 32 * 4
    assert json.loads(json.dumps(plain(found)))["training"] == {"tokens": 10, "seconds": 2.5}
    bare = cost(model, trainable=7, protocol=QUICK)
    assert (bare.disk_bytes, bare.folder_bytes, bare.trainable, bare.training) == (None, None, 7, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    model = random_decoder(gpt2_config(50)).cuda()
    with peak_memory("cuda") as peak:
        torch.zeros(1_000_000, device="cuda")
    assert peak.grown_bytes >= 4_000_000
    assert speed(model, QUICK)["device"] == "cuda"
