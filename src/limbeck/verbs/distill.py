"""``limbeck distill``: a student learns a task from its answers and from a teacher."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.tokenizer import check_alike
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Source
from limbeck.jobs.training import AnyStream, Encoded, Start, TrainingJob
from limbeck.losses.divergence import named
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.objectives.cross_tokenizer import CrossTokenizer
from limbeck.objectives.distill import Distillation as DistillObjective
from limbeck.objectives.objective import AnyObjective
from limbeck.objectives.teacher import LiveTeacher, Teacher, fingerprint
from limbeck.objectives.teacher_cache import CachedTeacher, CacheKey, check_fresh, loss_difference
from limbeck.objectives.teacher_cache_build import build_cache
from limbeck.run import Run
from limbeck.synth.on_policy import LossHistory, Mixing, OnPolicy, Replay, check_mixing, keep_rows
from limbeck.synth.teacher_answers import teacher_answers
from limbeck.train.distributed import world

__all__ = ["Distill"]

_TEACH: dict[str, JsonValue] = {"section": "distillation"}
_MODEL: dict[str, JsonValue] = {"section": "model"}
_SAMPLE = 64  # training examples on which cached and live teacher are compared


class Distill(TrainingJob):
    """Train a student on ``alpha * CE(answers) + beta * T^2 * KL(teacher || student)`` (Hinton et al. 2015).

    The student is ``model``, or a fresh ``architecture``, or, with neither, a copy of the teacher that a technique
    such as depth makes smaller.
    """

    verb: ClassVar[str] = "distill"
    summary: ClassVar[str] = "train a student from a teacher's distributions and the task's answers"

    teacher: str = Field(description=f"teacher: {NAMES}", json_schema_extra=_MODEL)
    model: str | None = Field(None, description=f"student to start from: {NAMES}", json_schema_extra=_MODEL)
    architecture: Architecture | None = Field(
        None, description="a fresh student instead; its context is the teacher's unless given"
    )
    alpha: float = Field(0.5, ge=0, description="weight of the cross-entropy on the answers", json_schema_extra=_TEACH)
    beta: float = Field(0.5, ge=0, description="weight of the divergence from the teacher", json_schema_extra=_TEACH)
    temperature: float = Field(
        1.0, gt=0, description="T; the divergence is multiplied by T^2", json_schema_extra=_TEACH
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"] = Field(
        "forward_kl", description="forward_kl is KL(teacher || student)", json_schema_extra=_TEACH
    )
    on: Literal["all", "answers"] = Field(
        "all", description="tokens that the divergence covers", json_schema_extra=_TEACH
    )
    teacher_top_k: int = Field(
        0,
        ge=0,
        description="write the teacher's k likeliest tokens to disk once and learn from those; 0: run it live",
        json_schema_extra=_TEACH,
    )
    teacher_cache: str | None = Field(
        None,
        description="folder of the teacher on disk, shared by runs; none: inside the run",
        json_schema_extra=_TEACH,
    )

    on_policy: Mixing = Field(default_factory=Mixing, description="learn from what the student itself writes")
    answers: Literal["data", "teacher"] = Field(
        "data",
        description="learn the data's answers, or those that the teacher writes to its prompts (sequence level)",
        json_schema_extra=_TEACH,
    )
    answer_tokens: int = Field(
        128, ge=1, description="most tokens of an answer that the teacher writes", json_schema_extra=_TEACH
    )
    answer_temperature: float = Field(
        0.0, ge=0, description="of the answers that the teacher writes; 0: greedy", json_schema_extra=_TEACH
    )
    cross_tokenizer: Literal["refuse", "text", "position"] = Field(
        "refuse",
        description="a teacher with another tokenizer: refuse it, or compare sorted distributions (ULD) where both "
        "have read the same text, or token by token",
        json_schema_extra=_TEACH,
    )

    @model_validator(mode="after")
    def _text_of_both(self) -> Distill:
        check_mixing(self.on_policy, packing=self.packing, shard=self.train.shard)
        if self.answers == "data" and {"answer_tokens", "answer_temperature"} & self.model_fields_set:
            raise ValueError(
                "answer_tokens and answer_temperature are of the teacher's answers: set answers to teacher"
            )
        if self.teacher_top_k and (self.on_policy.on or self.answers == "teacher"):
            raise ValueError("a teacher on disk knows the data's answers alone: leave teacher_top_k out")
        if self.cross_tokenizer != "refuse":
            if self.teacher_top_k or self.packing or self.answers == "teacher" or self.architecture is not None:
                raise ValueError(
                    "a teacher with another tokenizer is asked live, one document a row, on the data's answers, by a "
                    "student of its own: leave teacher_top_k, packing, answers and architecture out"
                )
            if self.model is None:
                raise ValueError("cross_tokenizer needs a student of its own: name it with 'model'")
            if {"divergence", "on"} & self.model_fields_set:
                raise ValueError("sorted distributions are compared on answers alone: leave divergence and on out")
        return self

    @model_validator(mode="after")
    def _one_student(self) -> Distill:
        if self.model is not None and self.architecture is not None:
            raise ValueError("model and architecture both name a student: give one")
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is nothing to learn")
        if self.teacher_cache is not None and self.teacher_top_k == 0:
            raise ValueError("teacher_cache needs teacher_top_k above 0")
        return self

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load the teacher, build or load the student, and check that both encode alike."""
        teacher = load_bundle(self.teacher, device=device)
        student, source = self._student(teacher, device)
        if self.dtype == "bf16":  # after a student was copied from it: training keeps that one's masters in full
            for p in teacher.model.parameters():
                p.data = p.data.to(torch.bfloat16) if p.is_floating_point() else p.data
        if self.cross_tokenizer == "refuse":
            check_alike(
                teacher.tokenizer, student.tokenizer, teacher.model.config.vocab_size, student.model.config.vocab_size
            )
        facts = {"teacher": self.teacher, "teacher_parameters": teacher.model.count_parameters()}
        fresh = self.architecture is not None
        start = Start(
            student.model, student.tokenizer, student.generation, source, facts, teacher, fresh, student.deployed_specs
        )
        if self.teacher_cache is not None and (Path(self.teacher_cache) / "cache.json").is_file():
            key = self._key(start, parts, min(self.context or start.context, start.context))
            check_fresh(Path(self.teacher_cache), key)  # before a run folder is made
        return start

    def _student(self, teacher: Bundle, device: torch.device) -> tuple[Bundle, str]:
        if self.model is not None:
            return load_bundle(self.model, device=device), self.model
        generation = dict(teacher.generation)
        if self.architecture is not None:
            reach = self.architecture.context or teacher.model.config.context  # it learns what the teacher can read
            shape = self.architecture.model_copy(update={"context": reach})
            model = Decoder(shape.config(teacher.model.config.vocab_size)).to(device)
            return Bundle(model, teacher.tokenizer, generation, "random weights", None), "random weights"
        model, source = copy.deepcopy(teacher.model), f"copy of the teacher {self.teacher}"
        return Bundle(model, teacher.tokenizer, generation, "teacher", None, teacher.deployed_specs), source

    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """``Distill`` on a live teacher, or on one written to disk first."""
        assert start.teacher is not None
        if any(m.config.classes is not None for m in (start.model, start.teacher.model)):
            raise ConfigError(
                "distillation teaches the next token, and a head of classes tells none: choose a task without such a "
                "head, for example paraphrase with method cloze"
            )
        if self.cross_tokenizer != "refuse":
            return CrossTokenizer(
                start.teacher.model,
                start.teacher.tokenizer,
                start.tokenizer,
                alpha=self.alpha,
                beta=self.beta,
                temperature=self.temperature,
                alignment=self.cross_tokenizer,
            )
        teacher: Teacher = LiveTeacher(start.teacher.model)
        if self.teacher_top_k and self.beta and run is not None:
            teacher = self._on_disk(start.teacher, start, data, parts, run)
        return DistillObjective(
            teacher=teacher,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            divergence=self.divergence,
            on=self.on,
        )

    def examples(self, data: Encoded, start: Start, run: Run) -> Encoded:
        """The examples to learn from: of the data, or with the answers that the teacher writes, kept in the run."""
        if self.answers == "data":
            return data
        assert start.teacher is not None
        decoding = Decoding(max_new_tokens=self.answer_tokens, temperature=self.answer_temperature, seed=self.seed)
        train = teacher_answers(
            start.teacher.model, start.teacher.tokenizer, data.train, decoding, context=data.context,
            file=run.path / "teacher_answers.jsonl", key=fingerprint(start.teacher.model),
            batch_size=self.measuring.batch_size,
        )  # fmt: skip
        return replace(data, train=train)

    def live(self, stream: Source, model: Decoder, data: Encoded, start: Start, run: Run) -> AnyStream:
        """The data's micro-batches, or some that the student answers itself."""
        if not self.on_policy.on:
            return stream
        rank = world().rank
        given = self.shuffled(data.train, start.tokenizer.pad_id, data.context, keep_rows)
        replay = Replay(run.path / f"replay-{rank}.jsonl", self.on_policy.capacity)
        history = LossHistory(run.metrics_file)
        return OnPolicy(
            given, model, start.tokenizer, self.on_policy, context=data.context, history=history, replay=replay,
            seed=self.seed,
        )  # fmt: skip

    def _key(self, start: Start, parts: Parts, context: int) -> CacheKey:
        """What a cache of this teacher on this data is made from."""
        assert start.teacher is not None
        told = f"{self.task.model_dump_json()} {start.tokenizer.fingerprint} {context}"
        rows = min(start.teacher.model.config.vocab_size, start.model.config.vocab_size)
        return CacheKey(
            teacher=fingerprint(start.teacher.model),
            data=parts.train.hash,
            template=hashlib.sha256(told.encode()).hexdigest(),
            k=min(self.teacher_top_k, rows),
            temperature=self.temperature,
            rows=rows,
        )

    def _cache(self, run: Run) -> Path:
        return Path(self.teacher_cache) if self.teacher_cache is not None else run.path / "teacher"

    def _on_disk(self, bundle: Bundle, start: Start, data: Encoded, parts: Parts, run: Run) -> Teacher:
        """Write the teacher's top tokens once, or find them written."""
        folder, key = self._cache(run), self._key(start, parts, data.context)
        device = bundle.model.device
        build_cache(LiveTeacher(bundle.model), data.train, folder, key, batch_size=self.batch_size, device=device)
        return CachedTeacher(folder, key)

    def extras(self, model: Decoder, objective: AnyObjective, start: Start, data: Encoded, run: Run) -> dict[str, Any]:
        """What the teacher on disk costs: the student's difference in loss from the live one, and bytes."""
        if not (self.teacher_top_k and self.beta):
            return {}
        assert start.teacher is not None
        cached, live = CachedTeacher(self._cache(run)), LiveTeacher(start.teacher.model)
        sample = [batch.to(model.device) for batch in self._fixed(data.train[:_SAMPLE], start, data.context)]
        lost = loss_difference(cached, live, model, sample, named(self.divergence))
        facts = {"k": cached.header.key.k, "live_nats": lost.live, "cached_nats": lost.cached, "tokens": lost.tokens}
        return {"teacher_cache": {**facts, "difference_nats": lost.difference, "bytes": _size(self._cache(run))}}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
