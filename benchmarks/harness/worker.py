"""The process of one arm: it takes steps when it is told to, and says how long they took and what they held."""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.claim import Arm

__all__ = ["Finished", "Turn", "peak_bytes", "serve"]


class Finished(BaseException):
    """The measurement is over: ends an arm's loop, whatever it catches."""


class Turn:
    """Given to an arm, which calls it after every step; it blocks until the next step is wanted.

    The first ``warmup`` steps run unasked. Then each line ``{"steps": n}`` on stdin makes n timed steps.
    """

    def __init__(self, warmup: int, replies: int) -> None:
        self._left, self._began, self._done = warmup, time.perf_counter(), 0
        self._replies = os.fdopen(replies, "w")
        self._first: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self._tokens = 0.0
        self._import_bytes = 0
        self._profiler: Any = None

    def imports(self, *modules: str) -> None:
        """Import everything that the arm needs, before it builds anything: what that takes is told apart."""
        for name in modules:
            importlib.import_module(name)
        self._import_bytes = peak_bytes()

    def __call__(self, tokens: float, losses: Mapping[str, float]) -> None:
        """End a step.

        Args:
            tokens: useful ones of the step, or whatever work the claim counts.
            losses: mean nats by name.

        Raises:
            Finished: no step is wanted any more.
        """
        self._done += 1
        self._left -= 1
        self._tokens += tokens
        self._losses = {name: float(value) for name, value in losses.items()}
        if self._done == 1:
            self._first = self._losses
        if self._left > 0:
            return
        seconds = time.perf_counter() - self._began
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
        self._say(seconds)
        line = json.loads(sys.stdin.readline() or "{}")
        if not line.get("steps"):
            raise Finished
        self._left, self._tokens = line["steps"], 0.0
        self._profiler = _profiler() if line.get("profile") else None
        self._began = time.perf_counter()

    def _say(self, seconds: float) -> None:
        weights, optimizer = _state_bytes()
        reply = {
            "seconds": seconds,
            "tokens": self._tokens,
            "steps": self._done,
            "first": self._first,
            "last": self._losses,
            "peak_bytes": peak_bytes(),
            "import_bytes": self._import_bytes,
            "weight_bytes": weights,
            "optimizer_bytes": optimizer,
        }
        if self._profiler is not None:
            reply["profile_ms"] = _by_kind(self._profiler)
        print(json.dumps(reply), file=self._replies, flush=True)


def peak_bytes() -> int:
    """Largest resident size this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _state_bytes() -> tuple[int, int]:
    """Bytes of all parameters alive, and of the optimizer's state."""
    torch = sys.modules.get("torch")
    if torch is None:  # an arm without it holds none of these
        return 0, 0
    alive = gc.get_objects()
    optimizers = [x for x in alive if issubclass(type(x), torch.optim.Optimizer)]  # isinstance would wake lazy modules
    moments = [t for o in optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return _bytes(x for x in alive if issubclass(type(x), torch.nn.Parameter)), _bytes(moments)


def _bytes(tensors: Iterable[Any]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _profiler() -> Any:
    import torch

    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True).__enter__()


_KINDS = (
    ("matmul", ("mm", "bmm", "addmm", "baddbmm", "mkldnn_linear", "linear", "matmul", "onednn")),
    ("attention", ("scaled_dot_product", "flash_attention", "DocumentAttention")),
    ("optimizer", ("fused_adam", "Optimizer.step")),
    ("softmax and loss", ("softmax", "nll_loss", "cross_entropy", "logsumexp", "gather", "scatter", "exp", "log")),
    ("activation", ("gelu", "tanh", "silu", "pow", "Activation", "ActivatedLinear")),
    ("norm", ("layer_norm", "rms_norm")),
    ("clipping", ("foreach_norm", "linalg_vector_norm", "clip")),
    ("casts and copies", ("copy_", "_to_copy", "aten::to", "cat", "contiguous", "clone", "foreach_copy")),
    ("sums and products", ("add", "mul", "sum", "div", "sub")),
    ("fills", ("fill_", "zero_", "zeros", "empty")),
)


def _by_kind(profiler: Any) -> dict[str, float]:
    """Milliseconds of own time by kind of operation, the largest first."""
    out: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::").strip("_").removesuffix("_")
        kind = next((kind for kind, words in _KINDS if _is(name, words)), "the rest")
        out[kind] += event.self_cpu_time_total / 1000
    return {k: round(v, 1) for k, v in sorted(out.items(), key=lambda item: -item[1]) if v >= 0.1}


def _is(name: str, words: tuple[str, ...]) -> bool:
    return any(name == w.strip("_") or (len(w) > 3 and w.strip("_") in name) for w in words)


def serve(arm: Arm, warmup: int) -> None:
    """Run ``arm`` until stdin ends; what it prints goes to stderr, replies to where stdout was."""
    replies = os.dup(1)
    os.dup2(2, 1)
    if arm.allocator == "keep":
        from limbeck.kernels.allocator import keep_freed_memory

        keep_freed_memory()
    try:
        arm.work(Turn(warmup, replies))
    except Finished:
        return
    raise SystemExit(f"{arm.name} ended its steps by itself")
