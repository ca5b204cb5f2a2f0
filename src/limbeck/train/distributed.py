"""Several ranks as one: torchrun's environment, sums over ranks, wrappers. One rank needs no process group."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from limbeck.errors import LimbeckError, RunError

__all__ = ["World", "full", "group", "like", "shard", "sync", "world", "wrap"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class World:
    """One process among its peers.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: where tensors must lie to be exchanged (NCCL knows only its GPU).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Rank 0: the process that writes files and speaks."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Stack every rank's ``values`` (...) to (ranks, ...), the same on each."""
        if self.size == 1:
            return values.unsqueeze(0)
        values = values.to(self.device)
        out = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(out, values)
        return torch.stack(out)

    def add(self, values: Sequence[float]) -> list[float]:
        """Add numbers over the ranks, place by place, in float64."""
        if self.size == 1:
            return list(values)
        return [float(v) for v in self.gather(torch.tensor(values, dtype=torch.float64)).sum(dim=0).tolist()]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients over the ranks in place, for those that no wrapper reduces."""
        if self.size > 1:
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            for work in [dist.all_reduce(p.grad, async_op=True) for p in parameters]:
                work.wait()

    def share(self, value: R) -> R:
        """Return rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    def on_main(self, work: Callable[[], R]) -> R:
        """Do ``work`` on rank 0 alone and return its result on every rank; an error there is an error on all.

        Raises:
            LimbeckError: whatever ``work`` raised on rank 0; a ``RunError`` with its sentence on the others.
        """
        if self.size == 1:
            return work()
        result: Any = None
        error: LimbeckError | None = None
        if self.main:
            try:
                result = work()
            except LimbeckError as caught:
                error = caught
        result, sentence = self.share((result, None if error is None else str(error)))
        if error is not None:
            raise error
        if sentence is not None:
            raise RunError(f"rank 0 stopped: {sentence}")
        return result  # type: ignore[no-any-return]

    def first(self, work: Callable[[], R]) -> R | None:
        """Do ``work`` on rank 0, whose result stays there: None on the others; an error there is an error on all.

        Raises:
            LimbeckError: as ``on_main``.
        """
        made: list[R] = []
        self.on_main(lambda: made.append(work()))
        return made[0] if self.main else None

    def in_turn(self, work: Callable[[], R]) -> R:
        """Do ``work`` on rank 0, then on the others, which find on disk what it wrote; it must not meet the group.

        Raises:
            LimbeckError: as ``on_main``, or whatever ``work`` raised here.
        """
        made = self.first(work)
        return work() if made is None else made


def world() -> World:
    """Return the process group that stands, or one rank alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    cuda = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def group(device: torch.device | str = "cpu") -> Iterator[World]:
    """Join the group that torchrun's environment describes, for the length of a ``with``; alone without it.

    NCCL for CUDA devices, else gloo.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        yield world()
        return
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # rank 0 measures and writes alone, for as long as that takes, while the others wait
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, here: World) -> nn.Module:
    """Wrap ``model`` in PyTorch's DDP, a copy per rank; return ``model`` itself for one rank.

    DDP *averages* gradients over ranks, while each rank's loss is already its share of the global mean: the loop
    multiplies its loss by ``here.size`` to make the average a sum (I22).
    """
    if here.size == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False)


def shard(model: nn.Module, bf16: bool) -> nn.Module:
    """Return a copy of ``model`` split over the ranks with FSDP2, block by block; ``model`` stays whole.

    With ``bf16`` the parameters stay fp32 and are cast as they are gathered; gradients are reduced in fp32. FSDP2
    averages over ranks like DDP.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    keywords: dict[str, Any] = {} if policy is None else {"mp_policy": policy}
    pieces = copy.deepcopy(model)
    for module in list(pieces.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, **keywords)
    fully_shard(pieces, **keywords)  # changes its class in place
    return pieces


def sync(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return context of one backward: DDP exchanges gradients only in the ``last`` one of an accumulation."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a possibly sharded tensor, detached; every rank must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return a copy of ``whole`` with the dtype, device and sharding of ``parameter``."""
    value = whole.detach().to(parameter.device, parameter.dtype, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
