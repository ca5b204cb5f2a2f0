"""The smallest quantizer there can be (int8 codes, a scale a row): what techniques above a quantized base meet."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from limbeck.model.surgery import replace
from limbeck.techniques.technique import Technique


class FakeQuantizedLinear(nn.Module):
    """Codes and scales as buffers, a plain float multiply in the forward; a bias stays a parameter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.parts = dict(linear.parts)
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class RoundedLinear(nn.Linear):
    """Quantization-aware training's stand-in: a float weight that is rounded in every forward."""

    quantized = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.parts, self.weight, self.bias = dict(linear.parts), linear.weight, linear.bias

    def forward(self, x):
        scale = self.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


class FakeQuantize(Technique):
    """Quantize the blocks' linear layers; its own deployed spec. ``aware``: rounds in training, packs at the end."""

    name: ClassVar[str] = "fake"
    kind: Literal["fake"] = "fake"
    aware: bool = False

    def apply(self, model, calibration=()):
        return self._put(model, RoundedLinear if self.aware else FakeQuantizedLinear)

    def convert(self, model):
        if self.aware:
            replace(model, lambda _, m: isinstance(m, RoundedLinear), lambda _, m: FakeQuantizedLinear(m))
        return model, self

    def training_skeleton(self, model):
        return self.apply(model)

    def deployed_skeleton(self, model):
        return self._put(model, FakeQuantizedLinear)

    @staticmethod
    def _put(model, kind):
        replace(model, lambda name, m: isinstance(m, nn.Linear) and name.startswith("blocks."), lambda _, m: kind(m))
        return model
