"""LoRA: train a low-rank change of each linear layer, beside its frozen weight (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError, nearest
from limbeck.model.decoder import Decoder
from limbeck.model.surgery import find, matches, replace
from limbeck.techniques.lora_layer import AdapterGroup, LoRALinear, adapters, sizes
from limbeck.techniques.technique import Technique, train_everything, train_only

__all__ = ["LoRA"]

_SETS = {"attention": ("attention.*",), "mlp": ("ffn.*",), "attention+mlp": ("attention.*", "ffn.*"), "all": ("*",)}


def _is_plain(base: nn.Module) -> bool:
    """May the base's weight take an adapter in? Not where it is, or is to be, on a grid."""
    return isinstance(base, nn.Linear) and base.weight.is_floating_point() and not getattr(base, "quantized", False)


def _linears(model: Decoder) -> dict[str, nn.Module]:
    """Outermost modules that map ``in_features`` to ``out_features``."""
    found = find(model, lambda _, m: hasattr(m, "in_features") and hasattr(m, "out_features"))
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


def _parts(name: str, module: nn.Module) -> dict[str, int]:
    return dict(getattr(module, "parts", None) or {name.rpartition(".")[2]: sizes(module)[1]})


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class LoRA(Technique):
    """Freeze the model and train a low-rank adapter beside each targeted linear layer.

    A starts random and B zero, so that nothing changes at first. Only adapters take gradients. ``convert`` merges them
    into the weights; where a base is quantized it leaves them beside, as its deployed spec, since rounding the sum
    again would change the model (I17). A tied head is the embedding: an adapter on it can only be merged by giving the
    head a weight of its own, so that is refused unless ``untie`` asks for it.

    >>> import limbeck
    >>> limbeck.LoRA(rank=4).rank
    4
    """

    name: ClassVar[str] = "lora"
    identity: ClassVar[bool] = True
    tolerance: ClassVar[dict[str, float]] = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 5e-2}

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="rank of each adapter")
    alpha: float = Field(16.0, gt=0, description="the change is scaled by alpha / rank")
    scaling: Literal["standard", "rslora"] = Field(
        "standard", description="rslora: scaled by alpha / sqrt(rank) instead (Kalajdzievski 2023)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input while training")
    targets: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        ("attention+mlp",),
        min_length=1,
        description="attention, mlp, attention+mlp, all (every linear layer, a tied head excepted), parts such as q, "
        "v, out, up, down, head, or patterns such as blocks.3.*",
    )
    split: bool = Field(True, description="an adapter each for q, k and v, and for gate and up; else one for all")
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="how A starts: uniform as in the authors' code, or normal of deviation 1 / rank"
    )
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field({}, description="other ranks by target or pattern")
    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="other alphas by target or pattern")
    merge: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: merge unless a base is quantized; always: or refuse; never: stay beside"
    )
    untie: bool = Field(False, description="merge an adapter of a tied head into a weight of its own")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Wrap the targeted layers, in place, and freeze all but the adapters.

        Raises:
            TechniqueError: a target or pattern that matches nothing, a rank above a layer's sizes, a model that has
                adapters, a tied head without ``untie``, or a quantized base with ``merge="always"``.
        """
        self._wrap(model)
        train_only(model, self.trained(model))
        return model

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return what ``apply`` does: it needs no calibration."""
        return self.apply(model)

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        """Wrap the targeted layers, in place, as ``convert`` leaves them where it does not merge."""
        self._wrap(model)
        return model

    def trained(self, model: Decoder) -> frozenset[str]:
        """Return names of the adapters' parameters, and of a head of classes, which has learned nothing yet."""
        kinds, wrapped = ("lora_a", "lora_b"), adapters(model)
        names = {f"{name}.{kind}.{group.name}" for name, m in wrapped.items() for kind in kinds for group in m.groups}
        if model.config.classes is not None and "head" not in wrapped:
            names |= {f"head.{name}" for name, p in model.head.named_parameters() if p.is_floating_point()}
        return frozenset(names)

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Merge every adapter in place, or leave them all as the deployed spec: never and where a base is quantized.

        Raises:
            TechniqueError: a base was quantized in the meantime and ``merge="always"``.
        """
        layers = adapters(model)
        quantized = [name for name, m in layers.items() if not _is_plain(m.base)]
        self._check_mergeable(quantized)
        if self.merge == "never" or quantized:
            train_everything(model)
            return model, self
        shared = _shared(model)
        for module in layers.values():
            assert isinstance(module.base, nn.Linear)
            if id(module.base.weight) in shared:
                module.base.weight = nn.Parameter(module.merged())
                model.config = model.config.model_copy(update={"tied": False})
            else:
                module.base.weight.data.copy_(module.merged())
        replace(model, lambda name, _: name in layers, lambda name, _: layers[name].base)
        train_everything(model)
        return model, None

    def stated_bytes(self, model: Decoder) -> int:
        """Return bytes of ``model``, of a head untied on purpose, and of adapters that may stay beside."""
        plan = self._plan(model)
        linears, shared, wide = _linears(model), _shared(model), _adapter_dtype(model).itemsize
        beside = sum(
            g.rank * (sizes(linears[name])[0] + g.size) * wide for name, groups in plan.items() for g in groups
        )
        if self.merge == "never" or not all(_is_plain(linears[name]) for name in plan):
            return model.count_bytes() + beside
        untied = [math.prod(sizes(linears[name])) for name in plan if _weight_id(linears[name]) in shared]
        return model.count_bytes() + sum(untied) * model.dtype.itemsize

    def _wrap(self, model: Decoder) -> None:
        plan = self._plan(model)
        made: dict[str, Any] = {"dropout": self.dropout, "dtype": _adapter_dtype(model), "device": model.device}

        def build(name: str, module: nn.Module) -> nn.Module:
            wrapped = LoRALinear(module, plan[name], parts=_parts(name, module), **made)
            for a in wrapped.lora_a.values():
                if self.init == "kaiming":
                    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                else:
                    nn.init.normal_(a, std=1 / a.shape[0])
            return wrapped

        replace(model, lambda name, _: name in plan, build)

    def _plan(self, model: Decoder) -> dict[str, tuple[AdapterGroup, ...]]:
        """Layer name -> its groups; every check that can be made before anything changes."""
        if taken := list(adapters(model)):
            raise TechniqueError(
                f"{taken[0]} has an adapter already, and LoRA finishes all there are: name every target in one LoRA, "
                "with ranks and alphas of their own where they differ"
            )
        linears, shared = _linears(model), _shared(model)
        chosen = self._targeted(linears, shared)
        tied = [name for name in chosen if _weight_id(linears[name]) in shared]
        if tied and self.merge != "never" and not self.untie:
            raise TechniqueError(
                f"{tied[0]} is tied to the embedding, into which its adapter must not be merged: "
                "set untie=true to give it a weight of its own, or merge=never to keep the adapter beside it"
            )
        self._check_mergeable([name for name in chosen if not _is_plain(linears[name])])
        used: set[str] = set()
        plan = {name: tuple(self._groups(name, linears[name], parts, used)) for name, parts in chosen.items()}
        for pattern in (*self.ranks, *self.alphas):
            if pattern not in used:
                raise TechniqueError(f"LoRA: '{pattern}' of ranks or alphas matches no targeted layer")
        return plan

    def _check_mergeable(self, quantized: Sequence[str]) -> None:
        if quantized and self.merge == "always":
            raise TechniqueError(
                f"{quantized[0]} is quantized: merging an adapter would round it to another model; "
                "set merge=auto or never to deploy the adapter beside it"
            )

    def _targeted(self, linears: Mapping[str, nn.Module], shared: set[int]) -> dict[str, list[str]]:
        """Layer name -> the parts that are targeted, both in the model's order."""
        chosen: dict[str, set[str]] = {}
        for target in self.targets:
            hit = False
            for name, module in linears.items():
                if target == "all" and _weight_id(module) in shared:
                    continue
                parts = [part for part in _parts(name, module) if _means(target, name, part, module)]
                if parts:
                    chosen.setdefault(name, set()).update(parts)
                    hit = True
            if not hit:
                raise _no_match(target, linears)
        return {n: [p for p in _parts(n, m) if p in chosen[n]] for n, m in linears.items() if n in chosen}

    def _groups(self, name: str, module: nn.Module, parts: list[str], used: set[str]) -> Iterator[AdapterGroup]:
        """Yield the adapters of one layer; notes in ``used`` which of ``ranks`` and ``alphas`` applied."""
        rows, at = {}, 0
        for part, size in _parts(name, module).items():
            rows[part] = slice(at, at + size)
            at += size
        fused = not self.split and len(rows) > 1
        for members in [parts] if fused else [[part] for part in parts]:
            label = name.rpartition(".")[2] if fused else members[0]

            def meant(pattern: str, members: list[str] = members) -> bool:
                return any(_means(pattern, name, part, module) for part in members)

            rank = int(_override(self.ranks, meant, used, self.rank))
            alpha = _override(self.alphas, meant, used, self.alpha)
            scale = alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)
            group = AdapterGroup(label, tuple(rows[p] for p in members), rank, scale)
            inside = sizes(module)[0]
            if rank > min(inside, group.size):
                raise TechniqueError(
                    f"LoRA rank {rank} does not fit {name} ({label}: {inside} in, {group.size} out): "
                    f"give a rank from 1 to {min(inside, group.size)}"
                )
            yield group


def _means(target: str, name: str, part: str, module: nn.Module) -> bool:
    """Return whether ``target`` means this part of the layer ``name``, by the part's own address or by the layer's.

    The address of ``q`` in ``blocks.0.attention.qkv`` is ``blocks.0.attention.q``. Where a fused layer is called like
    one of its parts, as ``up`` that holds gate and up, the name means the part.
    """
    patterns = _SETS.get(target, (target,))
    parent, _, leaf = name.rpartition(".")
    whole = leaf not in _parts(name, module) and matches(name, patterns)
    return whole or matches(f"{parent}.{part}" if parent else part, patterns)


def _override(values: Mapping[str, float], meant: Callable[[str], bool], used: set[str], default: float) -> float:
    """Return the first of ``values`` whose pattern is ``meant``; notes in ``used`` that it was."""
    for pattern, value in values.items():
        if meant(pattern):
            used.add(pattern)
            return value
    return default


def _no_match(target: str, linears: Mapping[str, nn.Module]) -> TechniqueError:
    known = list(dict.fromkeys([*_SETS, *(part for n, m in linears.items() for part in _parts(n, m))]))
    return TechniqueError(
        f"LoRA target '{target}' matches no linear layer{nearest(target, known)}; "
        f"there are {', '.join(known)}, and patterns of names such as blocks.0.*"
    )


def _shared(model: nn.Module) -> set[int]:
    """Ids of parameters that stand in more than one place, as a tied head does."""
    seen: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _weight_id(module: nn.Module) -> int:
    return id(getattr(module, "weight", None))


def _adapter_dtype(model: Decoder) -> torch.dtype:
    """At least float32: a learning rate's step is lost in the 8 bits of a bfloat16."""
    return torch.float64 if model.dtype == torch.float64 else torch.float32
