"""What a model costs: parameters, bytes on disk and in memory, and speed, all measured and none computed on paper."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from limbeck.config import Config
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.errors import DataError
from limbeck.kernels.allocator import give_back_freed_memory
from limbeck.model.decoder import Decoder
from limbeck.run import machine

__all__ = [
    "Cost",
    "Peak",
    "SpeedProtocol",
    "cost",
    "disk_bytes",
    "folder_bytes",
    "free_bytes",
    "held_bytes",
    "peak_memory",
    "peak_memory_bytes",
    "speed",
]

_WEIGHTS = (".safetensors", ".gguf")  # pickles are never loaded, so they are no model here


class SpeedProtocol(Config):
    """How speed is measured; figures of different protocols are not compared."""

    prompt_tokens: int = Field(64, ge=1, description="tokens of the prompt that is prefilled")
    new_tokens: int = Field(32, ge=2, description="tokens decoded one at a time after it")
    batch_size: int = Field(1, ge=1, description="sequences at once")
    repeats: int = Field(5, ge=1, description="timed runs; the median is reported")
    warm_up: int = Field(1, ge=0, description="runs before, not timed")

    def fitted(self, context: int) -> SpeedProtocol:
        """Shorten prompt and new tokens, by the same factor, to what a model of ``context`` tokens takes."""
        wanted = self.prompt_tokens + self.new_tokens
        if wanted <= context:
            return self
        new = max(2, self.new_tokens * context // wanted)
        return self.model_copy(update={"new_tokens": new, "prompt_tokens": max(1, context - new)})


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model costs.

    Attributes:
        parameters: a tied head counted once.
        trainable: how many of them took gradients.
        memory_bytes: parameters and buffers in memory, as they are.
        disk_bytes: the weight files of its folder; None where it has none.
        folder_bytes: every file of its folder.
        flops_per_token: of the forward of one token that sees a full context.
        kv_bytes_per_token: of the cache.
        speed: what ``speed`` measured.
        training: passed through: tokens and seconds of the run that made it.
        peak: resident memory at load and in use, as ``measure.footprint`` has it; empty where it was not measured.
    """

    parameters: int
    trainable: int
    memory_bytes: int
    disk_bytes: int | None
    folder_bytes: int | None
    flops_per_token: int
    kv_bytes_per_token: int
    speed: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    peak: Mapping[str, Any] = field(default_factory=dict)


def cost(
    model: Decoder,
    folder: Path | None = None,
    *,
    beside: Path | None = None,
    trainable: int | None = None,
    training: Mapping[str, Any] | None = None,
    protocol: SpeedProtocol = SpeedProtocol(),  # noqa: B008 - an immutable value
    timed: Mapping[str, Any] | None = None,
    peak: Mapping[str, Any] | None = None,
) -> Cost:
    """Measure one model.

    Args:
        model: as it is deployed.
        folder: where its files lie.
        beside: a further folder without which it is not that model: an adapter's.
        trainable: parameters that took gradients, where ``model`` itself no longer tells.
        training: what making it cost, such as tokens and seconds.
        protocol: of the speed.
        timed: what ``speed`` measured already; then it is not measured again.
        peak: passed through: memory at load and in use.

    Raises:
        DataError: ``folder`` holds no weights.
    """
    folders = [] if folder is None else [f for f in (folder, beside) if f is not None]
    return Cost(
        parameters=model.count_parameters(),
        trainable=model.count_parameters(trainable=True) if trainable is None else trainable,
        memory_bytes=model.count_bytes(),
        disk_bytes=sum(map(disk_bytes, folders)) if folders else None,
        folder_bytes=sum(map(folder_bytes, folders)) if folders else None,
        flops_per_token=model.flops_per_token(model.config.context),
        kv_bytes_per_token=model.kv_bytes_per_token(),
        speed=speed(model, protocol) if timed is None else timed,
        training=training or {},
        peak=peak or {},
    )


def disk_bytes(folder: Path) -> int:
    """Return bytes of the weight files in a model folder, or of a GGUF file, as the file system has them (I19).

    Raises:
        DataError: there is no such folder, or no weight file in it.
    """
    if folder.is_file():
        return folder.stat().st_size
    if not folder.is_dir():
        raise DataError(f"there is no model folder {folder} to measure")
    files = [f for f in folder.iterdir() if f.is_file() and f.suffix in _WEIGHTS]
    if not files:
        raise DataError(f"{folder} holds no weight files to measure")
    return sum(f.stat().st_size for f in files)


def folder_bytes(folder: Path) -> int:
    """Return bytes of every file in a model folder, tokenizer and configs too; or of a GGUF file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """Return most memory held so far: by torch on a GPU, else by this process (resident, what the kernel's ``VmHWM``
    says).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def held_bytes(device: torch.device | str = "cpu") -> int:
    """Return the memory held now: by torch on a GPU, else by this process (resident)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Return the free memory: the GPU's, or what the kernel calls available; 0 where it does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


@dataclass(slots=True)
class Peak:
    """Filled when the ``with`` block of ``peak_memory`` ends.

    Attributes:
        before_bytes: held when it began.
        peak_bytes: most held inside it.
    """

    before_bytes: int
    peak_bytes: int = 0

    @property
    def grown_bytes(self) -> int:
        """How far memory rose above what was held before."""
        return max(0, self.peak_bytes - self.before_bytes)


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the most memory held inside a ``with`` block, not since the process began.

    What earlier work freed is given back first: it would hide how far memory grows. Where the kernel does not let the
    mark be reset, an earlier and higher peak would hide this one; then the peak is that of the whole process, never
    less than the true one.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            pass
    peak = Peak(held_bytes(device))
    yield peak
    peak.peak_bytes = peak_memory_bytes(device)


def _status(name: str) -> int:
    """Return a figure of ``/proc/self/status``, in bytes; ``ru_maxrss`` where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def speed(model: Decoder, protocol: SpeedProtocol = SpeedProtocol()) -> dict[str, Any]:  # noqa: B008
    """Time prefill and greedy decoding with a cache.

    Args:
        model: put in evaluation mode meanwhile.
        protocol: lengths, batch size and repeats; shortened to the model's context.

    Returns:
        ``prefill_ms`` of the prompt, ``decode_ms_per_token`` of one step of the whole batch, ``tokens_per_second`` over
        the batch while decoding; medians, with the fastest and slowest decoding beside; ``protocol``, ``dtype``,
        ``device``, ``machine`` with its threads.
    """
    p = protocol.fitted(model.config.context)
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (p.batch_size, p.prompt_tokens), generator=random).tolist()
    prefill, decode = [], []
    with evaluating(model):
        for number in range(p.warm_up + p.repeats):
            session = DecodingSession(model, prompts, p.new_tokens)
            seconds, logits = _timed(session.start, model.device)
            steps, _ = _timed(lambda s=session, x=logits: _decode(s, x, p.new_tokens - 1), model.device)  # type: ignore[misc]
            if number >= p.warm_up:
                prefill.append(seconds)
                decode.append(steps / (p.new_tokens - 1))
    step = statistics.median(decode)
    return {
        "prefill_ms": 1e3 * statistics.median(prefill),
        "decode_ms_per_token": 1e3 * step,
        "decode_ms_fastest": 1e3 * min(decode),
        "decode_ms_slowest": 1e3 * max(decode),
        "tokens_per_second": p.batch_size / step,
        "protocol": p.model_dump(mode="json"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "machine": machine(),
    }


def _decode(session: DecodingSession, logits: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        logits = session.step(logits.argmax(dim=-1).tolist())
    return logits


def _timed(work: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    _wait(device)
    started = time.perf_counter()
    out = work()
    _wait(device)
    return time.perf_counter() - started, out


def _wait(device: torch.device) -> None:
    """Wait until a GPU, which works on behind the caller's back, has finished; before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
