"""A recipe with every shape of field that the command line knows."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from limbeck.config import Config
from limbeck.errors import DataError, Interrupted
from limbeck.jobs.recipe import Display, Recipe, Report, facts


class Box(Config):
    """A box."""

    height: int = 1


class Lora(Config):
    """Low-rank adapters."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="rank of each adapter")
    targets: tuple[str, ...] = Field(("qkv",), description="what is adapted")
    part: Annotated[Left | Right, Field(discriminator="kind")] | None = None


class Freeze(Config):
    """Frozen layers."""

    kind: Literal["freeze"] = "freeze"
    first: int = 0
    inner: Box = Field(default_factory=lambda: Box(height=4), description="what it lies in")


class Left(Config):
    kind: Literal["left"] = "left"


class Right(Config):
    kind: Literal["right"] = "right"
    size: int = 3


Lora.model_rebuild()
Technique = Annotated[Lora | Freeze, Field(discriminator="kind")]
Side = Annotated[Left | Right, Field(discriminator="kind")]


class Optim(Config):
    """How the weights move."""

    learning_rate: float = Field(1e-3, gt=0, le=1, description="step size")
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 1


class Train(Config):
    """How long and how fast.

    A second paragraph.
    """

    steps: int | None = Field(100, ge=1, description="optimizer steps")
    packing: bool = Field(False, description="pack short rows")
    optim: Optim = Optim(learning_rate=0.01)


class Other(Config):
    """Another."""

    depth: int = 1


class Toy(Recipe):
    """Shows ``every`` shape.

    Attributes:
        words: not part of the help.
    """

    verb: ClassVar[str] = "toy"
    summary: ClassVar[str] = "shows every shape"

    words: tuple[str, ...] = Field((), description="what to say", json_schema_extra={"positional": True})
    train: Train = Train()
    techniques: tuple[Technique, ...] = Field((), description="applied in order")
    side: Side = Right(size=5)
    pattern: Side | tuple[Side, ...] | None = None
    columns: dict[str, str] = Field(
        default_factory=dict, description="ours=theirs", json_schema_extra={"section": "data"}
    )
    shares: dict[str, float] = Field({"a": 0.5}, json_schema_extra={"section": "data"})
    layers: int | tuple[int, ...] = Field((0, 2), description="which layers")
    stop: tuple[str, ...] = Field((), json_schema_extra={"verbatim": True})
    activation: Literal["gelu_tanh", "silu"] = "gelu_tanh"
    size: Literal[1, 2] = 1
    rate: float | None = None
    maybe: bool | int = False
    model: str | Box = "base"
    extra: dict[str, Any] = Field(default_factory=dict)
    either: Box | Other | None = None
    fail: str | None = None

    def run(self, session: Display) -> Report:
        """Print, stream and fail as told."""
        if self.fail is not None:
            raise {
                "data": DataError("row 3 of x.csv has no column 'text': name it with --columns"),
                "ctrl-c": KeyboardInterrupt(),
                "saved": Interrupted("stopped at step 3; the checkpoint is saved"),
                "bug": ZeroDivisionError("by\nzero"),
                "bare": AssertionError(),
                "memory": MemoryError(),
                "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
                "cuda": type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
                "disk": OSError(errno.ENOSPC, "No space left on device", "x.bin"),
                "quota": OSError(errno.EDQUOT, "Quota"),
                "rights": PermissionError(errno.EACCES, "Permission denied", "y.bin"),
                "pipe": BrokenPipeError(),
            }[self.fail]
        print("a library says hello", file=sys.stdout)
        session.text.write("streamed\n")
        session.say("for people")
        return Report({"words": self.words, "nan": float("nan")}, (facts("Toy", [("words", len(self.words))]),))
