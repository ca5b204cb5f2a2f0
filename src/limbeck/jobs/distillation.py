"""Distillation: its options, its students and objectives, live teachers and teachers on disk."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.same_tokens import check_alike
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import PreparedTraining, rows_in_memory
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Encoded, Start
from limbeck.jobs.training import AnyStream, TrainingJob
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

__all__ = ["DistillationOptions", "distillation"]

_TEACH: dict[str, JsonValue] = {"section": "distillation"}
_MODEL: dict[str, JsonValue] = {"section": "model"}
_SAMPLE = 64  # training examples on which cached and live teacher are compared


class DistillationOptions(TrainingOptions):
    """A teacher, a student, and how the student learns from it."""

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
    def _text_of_both(self) -> DistillationOptions:
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
    def _one_student(self) -> DistillationOptions:
        if self.model is not None and self.architecture is not None:
            raise ValueError("model and architecture both name a student: give one")
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is nothing to learn")
        if self.teacher_cache is not None and self.teacher_top_k == 0:
            raise ValueError("teacher_cache needs teacher_top_k above 0")
        return self


def distillation(options: DistillationOptions) -> TrainingJob:
    """Return the job that trains a student from a teacher."""
    return TrainingJob(
        options,
        partial(_start, options),
        rows_in_memory(options),
        partial(_objective, options),
        examples=partial(_examples, options),
        live=partial(_live, options),
        extras=partial(_extras, options),
    )


def _start(options: DistillationOptions, parts: Parts, device: torch.device) -> Start:
    """Load the teacher, build or load the student, and check that both encode alike."""
    teacher = load_bundle(options.teacher, device=device)
    student, source = _student(options, teacher, device)
    if options.dtype == "bf16":  # after a student was copied from it: training keeps that one's masters in full
        for p in teacher.model.parameters():
            p.data = p.data.to(torch.bfloat16) if p.is_floating_point() else p.data
    if options.cross_tokenizer == "refuse":
        check_alike(
            teacher.tokenizer, student.tokenizer, teacher.model.config.vocab_size, student.model.config.vocab_size
        )
    facts = {"teacher": options.teacher, "teacher_parameters": teacher.model.count_parameters()}
    fresh = options.architecture is not None
    start = Start(
        student.model, student.tokenizer, student.generation, source, facts, teacher, fresh, student.deployed_specs
    )
    if options.teacher_cache is not None and (Path(options.teacher_cache) / "cache.json").is_file():
        key = _key(options, start, parts, min(options.context or start.context, start.context))
        check_fresh(Path(options.teacher_cache), key)  # before a run folder is made
    return start


def _student(options: DistillationOptions, teacher: Bundle, device: torch.device) -> tuple[Bundle, str]:
    if options.model is not None:
        return load_bundle(options.model, device=device), options.model
    generation = dict(teacher.generation)
    if options.architecture is not None:
        reach = options.architecture.context or teacher.model.config.context  # it learns what the teacher can read
        shape = options.architecture.model_copy(update={"context": reach})
        model = Decoder(shape.config(teacher.model.config.vocab_size)).to(device)
        return Bundle(model, teacher.tokenizer, generation, "random weights", None), "random weights"
    model, source = copy.deepcopy(teacher.model), f"copy of the teacher {options.teacher}"
    return Bundle(model, teacher.tokenizer, generation, "teacher", None, teacher.deployed_specs), source


def _objective(options: DistillationOptions, prepared: PreparedTraining) -> AnyObjective:
    """``Distill`` on a live teacher, or on one written to disk first."""
    start = prepared.start
    assert start.teacher is not None
    if any(m.config.classes is not None for m in (start.model, start.teacher.model)):
        raise ConfigError(
            "distillation teaches the next token, and a head of classes tells none: choose a task without such a "
            "head, for example paraphrase with method cloze"
        )
    if options.cross_tokenizer != "refuse":
        return CrossTokenizer(
            start.teacher.model,
            start.teacher.tokenizer,
            start.tokenizer,
            alpha=options.alpha,
            beta=options.beta,
            temperature=options.temperature,
            alignment=options.cross_tokenizer,
        )
    teacher: Teacher = LiveTeacher(start.teacher.model)
    if options.teacher_top_k and options.beta and prepared.run is not None:
        teacher = _on_disk(options, start.teacher, prepared)
    return DistillObjective(
        teacher=teacher,
        alpha=options.alpha,
        beta=options.beta,
        temperature=options.temperature,
        divergence=options.divergence,
        on=options.on,
    )


def _examples(options: DistillationOptions, prepared: PreparedTraining) -> Encoded:
    """Return the examples to learn from: of the data, or with the answers that the teacher writes, kept in the run."""
    data, start = prepared.data, prepared.start
    if options.answers == "data":
        return data
    assert start.teacher is not None
    decoding = Decoding(max_new_tokens=options.answer_tokens, temperature=options.answer_temperature, seed=options.seed)
    train = teacher_answers(
        start.teacher.model, start.teacher.tokenizer, data.train, decoding, context=data.context,
        file=prepared.opened.path / "teacher_answers.jsonl", key=fingerprint(start.teacher.model),
        batch_size=options.measuring.batch_size,
    )  # fmt: skip
    return replace(data, train=train)


def _live(options: DistillationOptions, prepared: PreparedTraining) -> AnyStream:
    """Return the data's micro-batches, or some that the student answers itself."""
    if not options.on_policy.on:
        return prepared.stream
    rank, data, tokenizer = world().rank, prepared.data, prepared.start.tokenizer
    run = prepared.opened
    given = options.shuffled(data.train, tokenizer.pad_id, data.context, keep_rows)
    replay = Replay(run.path / f"replay-{rank}.jsonl", options.on_policy.capacity)
    history = LossHistory(run.metrics_file)
    return OnPolicy(
        given, prepared.model, tokenizer, options.on_policy, context=data.context, history=history, replay=replay,
        seed=options.seed,
    )  # fmt: skip


def _key(options: DistillationOptions, start: Start, parts: Parts, context: int) -> CacheKey:
    """Return what a cache of this teacher on this data is made from."""
    assert start.teacher is not None
    told = f"{options.task.model_dump_json()} {start.tokenizer.fingerprint} {context}"
    rows = min(start.teacher.model.config.vocab_size, start.model.config.vocab_size)
    return CacheKey(
        teacher=fingerprint(start.teacher.model),
        data=parts.train.hash,
        template=hashlib.sha256(told.encode()).hexdigest(),
        k=min(options.teacher_top_k, rows),
        temperature=options.temperature,
        rows=rows,
    )


def _cache(options: DistillationOptions, run: Run) -> Path:
    return Path(options.teacher_cache) if options.teacher_cache is not None else run.path / "teacher"


def _on_disk(options: DistillationOptions, bundle: Bundle, prepared: PreparedTraining) -> Teacher:
    """Write the teacher's top tokens once, or find them written."""
    folder, key = _cache(options, prepared.opened), _key(options, prepared.start, prepared.parts, prepared.data.context)
    device = bundle.model.device
    build_cache(
        LiveTeacher(bundle.model), prepared.data.train, folder, key, batch_size=options.batch_size, device=device
    )
    return CachedTeacher(folder, key)


def _extras(options: DistillationOptions, prepared: PreparedTraining, objective: AnyObjective) -> Mapping[str, Any]:
    """Return what the teacher on disk costs: the student's difference in loss from the live one, and bytes."""
    if not (options.teacher_top_k and options.beta):
        return {}
    start, model = prepared.start, prepared.model
    assert start.teacher is not None
    folder = _cache(options, prepared.opened)
    cached, live = CachedTeacher(folder), LiveTeacher(start.teacher.model)
    sample = [batch.to(model.device) for batch in prepared.fixed(prepared.data.train[:_SAMPLE])]
    lost = loss_difference(cached, live, model, sample, named(options.divergence))
    facts = {"k": cached.header.key.k, "live_nats": lost.live, "cached_nats": lost.cached, "tokens": lost.tokens}
    return {"teacher_cache": {**facts, "difference_nats": lost.difference, "bytes": _size(folder)}}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
