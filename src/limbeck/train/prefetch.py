"""Micro-batches for a step: on a GPU those of the next step are made and copied while this one computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from limbeck.train.stream import Stream, parts

__all__ = ["Prefetched", "Prefetcher"]


@dataclass(frozen=True, slots=True)
class Prefetched:
    """One micro-batch.

    Attributes:
        batch: on the CPU, where it is counted.
        copy: on the device and on its way there, or None: it is copied when it is asked for.
        arrived: what the device records when the copy is there, or None.
    """

    batch: Any
    copy: Any = None
    arrived: torch.cuda.Event | None = None

    def to(self, device: torch.device) -> Any:
        """Return the micro-batch on ``device``, for work that is queued from now on."""
        if self.copy is None:
            return self.batch.to(device)
        if self.arrived is not None:
            working = torch.cuda.current_stream(device)
            working.wait_event(self.arrived)
            for tensor in _tensors(self.copy):
                tensor.record_stream(working)  # its memory is not given out before this stream is done with it
        return self.copy


class Prefetcher:
    """A stream, read in the order in which it is asked; ``close`` it when no more is wanted.

    Args:
        stream: micro-batches as a pure function of their number.
        device: where they are wanted.
        ahead: make what comes next in a thread of its own; None: on a GPU.
    """

    def __init__(self, stream: Stream[Any], device: torch.device, ahead: bool | None = None) -> None:
        self.stream, self.device = stream, device
        live = getattr(stream, "live", False)  # made from the weights of its own step
        threaded = device.type == "cuda" and not live if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "limbeck-feed") if threaded else None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._coming: dict[int, Future[Prefetched]] = {}

    def take(self, now: Sequence[int], then: Sequence[int] = ()) -> list[Prefetched]:
        """Return the micro-batches ``now``, and begin those named ``then``.

        Raises:
            Exception: whatever the stream raised over one of ``now``.
        """
        if self._thread is None:
            return [Prefetched(self.stream.at(i)) for i in now]
        for i in (*now, *then):
            if i not in self._coming:
                self._coming[i] = self._thread.submit(self._make, i)
        taken = [self._coming.pop(i) for i in now]
        for i in self._coming.keys() - set(then):  # after a change of plan
            self._coming.pop(i).cancel()
        return [future.result() for future in taken]

    def _make(self, index: int) -> Prefetched:
        batch = self.stream.at(index)
        if self._copies is None:
            return Prefetched(batch)
        with torch.cuda.stream(self._copies):  # its device too: a new thread would pin by the first GPU on every rank
            batch = batch.pin()  # only from pinned memory does a copy run beside the work
            copy = batch.to(self.device)
            return Prefetched(batch, copy, self._copies.record_event())

    def close(self) -> None:
        """End the thread; what was begun is dropped."""
        self._coming.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


def _tensors(batch: Any) -> list[Tensor]:
    values = [getattr(part, field.name) for part in parts(batch) for field in fields(part)]
    return [x for x in values if isinstance(x, Tensor)]
