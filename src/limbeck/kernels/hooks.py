"""Whether a module's call may be replaced by its arithmetic."""

from __future__ import annotations

from torch import nn

__all__ = ["hooked"]


def hooked(module: nn.Module) -> bool:
    """Return whether somebody wants to see this very module called, forward or backward."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)
