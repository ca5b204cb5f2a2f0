"""The dtype of the computation: plain, or bf16 weights in the model with fp32 masters in the optimizer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointError, ConfigError
from limbeck.train.distributed import full, like

__all__ = ["Precision", "TrainedWeights", "emulates_bf16", "fastest", "join_halves", "split_halves"]

Precision = Literal["fp32", "bf16", "fp64"]

_BLOCK = 1 << 20  # elements


class TrainedWeights:
    """The trained tensors in the optimizer's precision, and the model that they drive.

    fp32 and fp64: ``trained`` are the model's own parameters. bf16: the model's parameters are bf16 and ``trained`` are
    their fp32 masters, so no step casts weights in the forward; each micro-batch's bf16 gradient is added to the
    master's fp32 gradient the moment it is whole and freed. Frozen parameters have no master: the 16 bits that bf16
    drops lie beside them, so that ``release`` gives them back bit for bit at no more than fp32's memory.

    Attributes:
        trained: name -> tensor that the optimizer steps; a tied weight is there once.
    """

    def __init__(self, model: nn.Module, precision: Precision, alone: bool = False) -> None:
        """Take over ``model``'s weights.

        Args:
            model: its parameters change their dtype.
            precision: of the computation.
            alone: one micro-batch on one rank makes a step's gradient. In bf16 there is nothing to add up in fp32 then,
                so gradients stay with the model's bf16 parameters, at half the memory.
        """
        self.model, self.precision = model, precision
        self._apart = precision == "bf16" and not alone
        self._wide = torch.float64 if precision == "fp64" else torch.float32
        _cast(model, self._wide)
        named = dict(model.named_parameters())
        self._own = {n: p for n, p in named.items() if p.requires_grad}
        self._frozen = {n: p for n, p in named.items() if not p.requires_grad}
        if not self._own:
            raise ConfigError("there is nothing to train: every parameter of the model is frozen")
        self._halves: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.trained: dict[str, nn.Parameter] = self._own
        if precision == "bf16":
            self._narrow()

    def _narrow(self) -> None:
        # The masters take over the fp32 storage, but where that is no plain array.
        self.trained = {n: nn.Parameter(p.detach().contiguous()) for n, p in self._own.items()}
        for name, p in self._own.items():
            p.data = p.data.to(torch.bfloat16).contiguous()
            if not self._apart:
                continue
            hook = p.register_post_accumulate_grad_hook(_collector(self.trained[name]))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
        for name, p in self._frozen.items():
            if p.dtype == torch.float32:
                self._split(name, p, p.data)

    def _split(self, name: str, p: nn.Parameter, wide: Tensor) -> None:
        p.data, low = split_halves(wide)
        self._halves.pop(name, None)
        if bool(low.any()):  # weights that were bf16 before have nothing to keep
            self._halves[name] = low

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model; called after an optimizer step."""
        if self.trained is not self._own:
            torch._foreach_copy_(list(self._own.values()), list(self.trained.values()))

    def clear_gradients(self, keep: bool) -> None:
        """Zero the gradient buffers, or free them unless ``keep``."""
        for p in self._holders().values():
            if keep and p.grad is not None:
                p.grad.zero_()
            else:
                p.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient of each trained tensor that has one, in the dtype that it was left in."""
        return {n: p.grad for n, p in self._holders().items() if p.grad is not None}

    def copies(self) -> dict[str, Tensor]:
        """Return the model's own bf16 copy of each master; empty where the model holds the masters themselves."""
        return {} if self.trained is self._own else {n: p.detach() for n, p in self._own.items()}

    def _holders(self) -> dict[str, nn.Parameter]:
        """Where gradients are left: the masters, or the model's own parameters."""
        return self.trained if self._apart else self._own

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return whole tensors in full precision: what training changes (trained, buffers), and what it does not
        (frozen).
        """
        changing = {n: full(p) for n, p in self.trained.items()} | self._buffers()
        frozen = {n: full(p) for n, p in self._frozen.items()}
        for name, p in frozen.items():
            if name in self._halves:
                frozen[name] = join_halves(p, self._halves[name])
            elif p.is_floating_point():
                frozen[name] = p.to(self._wide)
        return changing, frozen

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``state`` returned: both parts in one mapping, or the first alone.

        Raises:
            CheckpointError: a trained tensor is missing, or a shape differs; nothing was changed then.
        """
        changing: dict[str, Tensor] = {**self.trained, **self._buffers()}
        for name, here in {**changing, **self._frozen}.items():
            if name not in tensors:
                if name in changing:
                    raise CheckpointError(f"key '{name}' is missing")
            elif tensors[name].shape != here.shape:
                raise CheckpointError(f"key '{name}' has shape {_shape(tensors[name])}, the model's is {_shape(here)}")
        extra = sorted(set(tensors) - set(changing) - set(self._frozen))
        if extra:
            raise CheckpointError(f"key '{extra[0]}' belongs to no weight of this model")
        for name, here in changing.items():
            here.detach().copy_(like(here, tensors[name]))
        for name, p in self._frozen.items():
            if name in tensors and p.dtype == torch.bfloat16:
                self._split(name, p, tensors[name].to(p.device, torch.float32))
            elif name in tensors:
                p.detach().copy_(like(p, tensors[name]))
        self.publish()

    def release(self) -> None:
        """End: the model holds the masters themselves, frozen weights bit for bit, and no hook. Gradients are freed."""
        for hook in self._hooks:
            hook.remove()
        for name, p in self._own.items():
            p.grad = None
            p.data = self.trained[name].data
        for name, half in self._halves.items():
            self._frozen[name].data = join_halves(self._frozen[name].data, half)
        self._halves.clear()
        self.trained = self._own
        _cast(self.model, self._wide)

    def _buffers(self) -> dict[str, Tensor]:
        """Buffers that belong to the saved state, each once."""
        saved = self.model.state_dict(keep_vars=True)
        return {n: b for n, b in self.model.named_buffers() if n in saved}


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast floating parameters, not buffers: scales and tables keep the precision their owner chose."""
    for p in model.parameters():
        if p.is_floating_point() and p.dtype != dtype:
            p.data = p.data.to(dtype)


def _collector(master: nn.Parameter) -> Callable[[Tensor], None]:
    def collect(p: Tensor) -> None:
        assert p.grad is not None
        if master.grad is None:
            master.grad = p.grad.to(master.dtype)
        else:
            master.grad.add_(p.grad)
        p.grad = None

    return collect


def split_halves(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Split fp32 into its nearest bf16 and the int16 of low bits that bf16 drops; ``join_halves`` undoes it exactly.

    Nearest with ties toward zero: bf16 is the high half, plus one where the low half is above the middle.
    """
    narrow = torch.empty(wide.shape, dtype=torch.bfloat16, device=wide.device)
    low_bits = torch.empty(wide.shape, dtype=torch.int16, device=wide.device)
    high_bits = narrow.view(torch.int16)
    for bits, into, rest in _blocks(wide.contiguous().view(torch.int32), high_bits, low_bits):
        low = bits & 0xFFFF
        into.copy_(_short((bits >> 16) + (low > 0x8000).int()))
        rest.copy_(_short(low))
    return narrow, low_bits


def join_halves(narrow: Tensor, low_bits: Tensor) -> Tensor:
    """Rebuild the fp32 tensor that ``split_halves`` took apart."""
    wide = torch.empty(narrow.shape, dtype=torch.float32, device=narrow.device)
    for into, high, rest in _blocks(wide.view(torch.int32), narrow.contiguous().view(torch.int16), low_bits):
        low = rest.int() & 0xFFFF
        into.copy_(((high.int() - (low > 0x8000).int()) << 16) | low)
    return wide


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat blocks of contiguous tensors of one size, so that what is computed of them in between stays small."""
    return zip(*(torch.split(x.view(-1), _BLOCK) for x in tensors), strict=True)


def _short(bits: Tensor) -> Tensor:
    """Keep the low 16 bits of an int32 tensor, as int16."""
    return ((bits << 16) >> 16).to(torch.int16)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def fastest(
    model: nn.Module, step: Callable[[nn.Module, TrainedWeights], None], device: torch.device
) -> dict[Precision, float]:
    """Time one forward, backward and update in fp32 and in bf16 on throwaway copies of ``model``.

    Args:
        model: left as it is.
        step: runs one of them on a copy.
        device: whose queue to wait for.

    Returns:
        Seconds of the faster of two timed steps (after an untimed one) for each precision, the fastest first.
    """
    seconds: dict[Precision, float] = {}
    choices: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in choices:
        twin = copy.deepcopy(model)
        weights = TrainedWeights(twin, precision, alone=device.type == "cpu")
        step(twin, weights)
        best = float("inf")
        for _ in range(2):
            _wait(device)
            start = time.perf_counter()
            step(twin, weights)
            _wait(device)
            best = min(best, time.perf_counter() - start)
        seconds[precision] = best
        weights.release()
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


@cache
def emulates_bf16(device: torch.device) -> bool:
    """Measure whether a product in bf16 takes more than twice the time of one in fp32, as where it is emulated."""
    if device.type != "cpu":
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(256, 256, dtype=dtype)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            x @ x
            best = min(best, time.perf_counter() - start)
        seconds[dtype] = best
    return seconds[torch.bfloat16] > 2 * seconds[torch.float32]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
