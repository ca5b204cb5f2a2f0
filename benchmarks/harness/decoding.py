"""Arms that generate: transformers, llama.cpp on a GGUF file of the same weights, and Limbeck; token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, Shape, ours, random_ids, theirs
from harness.training import THEIRS
from harness.worker import Turn

if TYPE_CHECKING:
    from limbeck.model.decoder import Decoder

__all__ = ["PROMPT", "arms", "claim_of", "limbeck", "llama_cpp", "shape_of", "shapes", "transformers"]

PROMPT = 16
_GRIDS = {"int8": "int8", "q8_0": "q8_0", "int4": "int4"}


def transformers(shape: Shape, dtype: str, rows: int, new: int, prompt: int = PROMPT) -> Callable[[Turn], None]:
    """``generate``, greedy; with ``new`` 0 the forward over the prompt alone."""

    def work(turn: Turn) -> None:
        turn.imports(*THEIRS)
        import torch

        model, ids = theirs(shape, dtype).eval(), random_ids(shape, rows, prompt)
        with torch.no_grad():
            nll = float(model(input_ids=ids, labels=ids).loss)
            while True:
                if new:
                    model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                        do_sample=False, pad_token_id=0,
                    )  # fmt: skip
                else:
                    model(input_ids=ids, logits_to_keep=1)
                turn(rows * (new or prompt), {"nll": nll})

    return work


def limbeck(shape: Shape, kind: str, rows: int, new: int, prompt: int = PROMPT) -> Callable[[Turn], None]:
    """A session, greedy; ``kind`` is fp32, bf16, or a grid to which a bf16 model is rounded, embedding and head too."""

    def work(turn: Turn) -> None:
        turn.imports("limbeck.decode.session", "limbeck.formats.huggingface", "limbeck.techniques.rtn")
        import torch.nn.functional as F

        from limbeck.data.batch import Batch
        from limbeck.decode.session import DecodingSession, evaluating

        model, ids = _rounded(shape, kind), random_ids(shape, rows, prompt)
        with evaluating(model):
            logits = model(Batch.of_ids(ids))[:, :-1].float()
            nll = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            del logits
            while True:
                session = DecodingSession(model, ids.tolist(), new)
                logits = session.start()
                for _ in range(new):
                    logits = session.step(logits.argmax(dim=-1).tolist())
                turn(rows * (new or prompt), {"nll": nll})

    return work


def _rounded(shape: Shape, kind: str) -> Decoder:
    from limbeck.techniques.grid import Grid
    from limbeck.techniques.rtn import RTN

    model = ours(shape, {"fp32": "float32"}.get(kind, "bfloat16")).eval()
    return RTN(grid=Grid(format=_GRIDS[kind])).apply(model) if kind in _GRIDS else model


def llama_cpp(shape: Shape, kind: str, new: int, prompt: int = PROMPT) -> Callable[[Turn], None]:
    """llama.cpp by its C interface, greedy, on a file whose head is tied and has the file's type; two threads."""

    def work(turn: Turn) -> None:
        turn.imports("llama_cpp", "limbeck.formats.gguf")
        import tempfile

        import llama_cpp as peer
        import numpy as np
        import torch

        from limbeck.data.tokenizer import Tokenizer
        from limbeck.formats.gguf import write_gguf

        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            write_gguf(ours(shape), Tokenizer.train(["a few words"], 300), file, kind=kind)  # type: ignore[arg-type]
            options = {"n_ctx": shape.context, "n_batch": 1024, "n_ubatch": 1024, "verbose": False}
            llama = peer.Llama(str(file), n_threads=threads, n_threads_batch=threads, logits_all=True, **options)
            ids = random_ids(shape, 1, prompt)[0].tolist()
            llama.eval(ids)
            scores = torch.from_numpy(np.array(llama.scores[: prompt - 1]))
            nll = float(torch.nn.functional.cross_entropy(scores, torch.tensor(ids[1:])))
            del llama, scores
            llama = peer.Llama(str(file), n_threads=threads, n_threads_batch=threads, **options)
        context, size = llama.ctx, shape.vocabulary

        def feed(tokens: list[int]) -> Any:
            held = (peer.llama_token * len(tokens))(*tokens)
            if peer.llama_decode(context, peer.llama_batch_get_one(held, len(tokens))):
                raise RuntimeError("llama_decode failed")
            return np.ctypeslib.as_array(peer.llama_get_logits_ith(context, -1), (size,))

        while True:
            peer.llama_memory_clear(peer.llama_get_memory(context), True)
            logits = feed(ids)
            for _ in range(new):
                logits = feed([int(logits.argmax())])
            turn(new or prompt, {"nll": nll})

    return work


def arms(shape: Shape, new: int, prompt: int = PROMPT) -> tuple[Arm, ...]:
    """One sequence: every kind of number beside its peers."""
    files = {"F16": "f16", "Q8_0": "q8_0", "Q4_0": "q4_0"}
    return (
        *(
            Arm(f"transformers {name}", transformers(shape, dtype, 1, new, prompt), "system", "eager")
            for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        *(
            Arm(f"llama.cpp {name}", llama_cpp(shape, kind, new, prompt), "system", _LLAMA, ("llama_cpp",))
            for name, kind in files.items()
        ),
        Arm("Limbeck fp32", limbeck(shape, "fp32", 1, new, prompt)),
        Arm("Limbeck bf16", limbeck(shape, "bf16", 1, new, prompt)),
        Arm("Limbeck int8", limbeck(shape, "int8", 1, new, prompt), remark="one scale a row, embedding and head too"),
        Arm("Limbeck int4", limbeck(shape, "int4", 1, new, prompt), remark="groups of 32, embedding and head too"),
    )


_LLAMA = "through its C interface, two threads, flash attention and cache type as they come; head tied"


def shape_of(quick: bool) -> Shape:
    """GPT-2 small, or a toy that has room for a byte-level vocabulary."""
    return Shape(layers=2, width=32, heads=2, vocabulary=320, context=128) if quick else GPT2


def shapes(quick: bool) -> list[Shape]:
    """What ``harness.turns.main`` asks for."""
    return [shape_of(quick)]


def claim_of(name: str, title: str, setting: str, all_arms: tuple[Arm, ...], bars: tuple[Bar, ...]) -> Claim:
    """A claim whose step is one whole text; the loss over the prompt must agree but for the rounding of weights."""
    return Claim(
        name=name, title=title, setting=setting, arms=all_arms, bars=bars, rounds=7, steps=1, warmup=1,
        equal={"nll": 0.02},
    )  # fmt: skip
