"""Read activations from outside: the model knows nothing of who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limbeck.errors import TechniqueError
from limbeck.model.surgery import find, matches

__all__ = ["Reader", "taps"]

Reader = Callable[[str, Tensor], None]
"""What listens: it gets the module's dotted name and the detached tensor, (B, T, C) as it stands there."""


@contextmanager
def taps(
    model: nn.Module, patterns: Sequence[str], *, inputs: Reader | None = None, outputs: Reader | None = None
) -> Iterator[list[str]]:
    """Call readers with what goes into and comes out of modules, for as long as the context lasts.

    Nothing is kept here: a reader that sums (a Hessian, a mean) holds its sum alone. Under gradient checkpointing a
    block runs again in the backward and is read twice; calibration runs without gradients, where it is read once.

    Args:
        model: any module; its forward is not changed.
        patterns: shell-style module names as in ``surgery.matches``: ``attention.qkv``, ``blocks.*.ffn.down``.
        inputs: called with the first argument of each forward.
        outputs: called with the result of each forward.

    Yields:
        The names that are tapped, in the model's own order.

    Raises:
        TechniqueError: no module matches.
    """
    chosen = find(model, lambda name, _: matches(name, tuple(patterns)))
    if not chosen:
        raise TechniqueError(f"no module of the model matches {', '.join(patterns) or 'an empty list of patterns'}")
    handles = []
    for name, module in chosen.items():
        if inputs is not None:
            handles.append(module.register_forward_pre_hook(_on_input(name, inputs)))
        if outputs is not None:
            handles.append(module.register_forward_hook(_on_output(name, outputs)))
    try:
        yield list(chosen)
    finally:
        for handle in handles:
            handle.remove()


def _on_input(name: str, reader: Reader) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        reader(name, args[0].detach())

    return hook


def _on_output(name: str, reader: Reader) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        reader(name, result.detach())

    return hook
