"""A decoder written to be read: fp64, one position and one head at a time, dense lists of who sees whom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sees", "slow_angles", "slow_logits"]


def sees(pattern, query: int, key: int) -> bool:
    """May position ``query`` see position ``key``?"""
    if key > query:
        return False
    if pattern.kind == "causal":
        return True
    if pattern.kind == "sliding":
        return query - key < pattern.window or key < pattern.sinks
    if pattern.kind == "log_sparse":
        back = query - key
        while pattern.restart and back >= pattern.restart:
            back -= pattern.restart
        return key < pattern.sinks or back < pattern.window or back in {2**i for i in range(40)}
    if pattern.kind == "strided":
        back = query - key
        far = back % pattern.stride == 0 and (not pattern.keys or back // pattern.stride <= pattern.keys)
        return key < pattern.sinks or back < pattern.window or far
    raise AssertionError(f"the slow decoder does not know the pattern {pattern.kind}: teach it here")


def slow_angles(config, position: int) -> list[float]:
    """Angle of each pair (i, i + D/2) at ``position``, Llama 3's stretching written out as its model card does."""
    angles = []
    for i in range(config.head_dim // 2):
        frequency = config.rope.theta ** (-2 * i / config.head_dim)
        s = config.rope.scaling
        if s is not None:
            wavelength = 2 * math.pi / frequency
            if wavelength > s.original_context / s.low_freq_factor:
                frequency = frequency / s.factor
            elif wavelength >= s.original_context / s.high_freq_factor:
                smooth = (s.original_context / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
        angles.append(position * frequency)
    return angles


def _turn(config, x: Tensor, position: int) -> Tensor:
    half, out = config.head_dim // 2, x.clone()
    for i, angle in enumerate(slow_angles(config, position)):
        a, b = float(x[i]), float(x[i + half])
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def _norm(config, x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    if config.norm == "rms":
        return x / torch.sqrt((x * x).mean() + config.norm_eps) * w[f"{name}.weight"]
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + config.norm_eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def _activate(kind: str, x: Tensor) -> Tensor:
    if kind == "silu":
        return x / (1 + torch.exp(-x))
    if kind == "relu":
        return x.clamp(min=0)
    if kind == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _attention(config, layer: int, xs: list[Tensor], w: dict[str, Tensor]) -> list[Tensor]:
    d, name = config.head_dim, f"blocks.{layer}.attention"
    group = config.heads // config.kv_heads
    fused = [_linear(x, w, f"{name}.qkv") for x in xs]
    first_k, first_v = config.heads * d, (config.heads + config.kv_heads) * d
    out = []
    for t in range(len(xs)):
        heads = []
        for h in range(config.heads):
            query = fused[t][h * d : (h + 1) * d]
            pattern = config.pattern_at(layer)
            visible = [s for s in range(len(xs)) if sees(config.pattern_at(layer), t, s)]
            scores, values = [], []
            for s in visible:
                at = (h // group) * d
                key = fused[s][first_k + at : first_k + at + d]
                turned = query
                if config.positions == "rope":
                    near = s < pattern.sinks and getattr(pattern, "sink_distance", "true") == "cache"
                    last = pattern.sinks + pattern.window - 1 if near else t
                    key, turned = _turn(config, key, s), _turn(config, query, min(t, last))
                scores.append(float(turned @ key) / math.sqrt(d))
                values.append(fused[s][first_v + at : first_v + at + d])
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            heads.append(sum(p / sum(weights) * v for p, v in zip(weights, values, strict=True)))
        out.append(_linear(torch.cat(heads), w, f"{name}.out"))
    return out


def _feed_forward(config, layer: int, x: Tensor, w: dict[str, Tensor]) -> Tensor:
    name = f"blocks.{layer}.ffn"
    y = _linear(x, w, f"{name}.up")
    if config.gated:
        y = _activate(config.activation, y[: config.ffn_width]) * y[config.ffn_width :]
    else:
        y = _activate(config.activation, y)
    return _linear(y, w, f"{name}.down")


@torch.no_grad()
def slow_logits(config, state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """(T, V) float64 logits of one sequence under a decoder's config and ``state_dict()``."""
    w = {name: tensor.double() for name, tensor in state.items()}
    xs = [w["embed.weight"][i] for i in ids]
    if config.positions == "learned":
        places = list(range(config.context))
        while len(places) < len(xs):  # past the context, where that is allowed: round and round behind the sinks
            places += range(max(config.pattern_at(i).sinks for i in range(config.layers)), config.context)
        xs = [x + w["positions.weight"][places[t]] for t, x in enumerate(xs)]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        attended = _attention(config, layer, [_norm(config, x, w, f"{block}.attention_norm") for x in xs], w)
        xs = [x + y for x, y in zip(xs, attended, strict=True)]
        xs = [x + _feed_forward(config, layer, _norm(config, x, w, f"{block}.ffn_norm"), w) for x in xs]
    return torch.stack([w["head.weight"] @ _norm(config, x, w, "norm") for x in xs])
