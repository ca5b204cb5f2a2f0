"""One rank alone needs no group; with one, the parts behave (two ranks: see I22)."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist

from limbeck.errors import StorageError
from limbeck.train.distributed import World, full, group, like, shard, sync, world, wrap
from tests.reference.training import Random, tiny


def test_alone_everything_is_itself() -> None:
    model = tiny()
    with group() as here:
        assert here == World() == world() and here.main
    assert wrap(model, here) is model
    assert here.add([1.0, 2.5]) == [1.0, 2.5]
    assert here.gather(torch.ones(2)).shape == (1, 2)
    assert here.share("x") == "x"
    assert here.on_main(lambda: 3) == 3
    here.add_gradients(list(model.parameters()))
    assert model.embed.weight.grad is None
    with sync(model, last=False):
        pass

    def refuse() -> None:
        raise StorageError("full")

    with pytest.raises(StorageError):
        here.on_main(refuse)


def test_whole_tensors_are_copied() -> None:
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    value = torch.ones(3)
    copied = like(p, value)
    assert copied.dtype == torch.float64
    same = like(p, value.double())
    same.zero_()
    assert value.sum() == 3
    assert full(p).requires_grad is False


def test_torchruns_environment_makes_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with group() as here:
        assert dist.is_initialized() and dist.get_backend() == "gloo"
        assert (here.rank, here.size, here.device.type) == (0, 1, "cpu")
        with group() as inner:  # a group that stands is used and left standing
            assert inner == here
        assert dist.is_initialized()
        model = tiny()
        batch = Random().at(0)
        for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
            pieces = shard(model, bf16)
            logits = pieces(batch)
            assert logits.dtype == dtype
            torch.testing.assert_close(logits.float(), model(batch), rtol=0, atol=0.1 if bf16 else 1e-6)
            pieces.reshard()  # the root keeps its gathered bf16 copy after a forward
            assert torch.equal(full(pieces.embed.weight), model.embed.weight)
            again = like(pieces.embed.weight, model.embed.weight)
            assert type(again) is type(pieces.embed.weight.data)
        assert type(model).__name__ == "Decoder"
    assert not dist.is_initialized()
