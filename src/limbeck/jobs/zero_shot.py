"""Which zero-shot task a model is asked beside its own, and on which rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from limbeck.config import Config
from limbeck.data.tokenizer import Tokenizer
from limbeck.measure.probes.zero_shot import ZeroShot
from limbeck.measure.scores import Scores
from limbeck.model.decoder import Decoder
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Measuring, Task

__all__ = ["ZeroShotRows"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_TOYS = {"paraphrase": "toy:paraphrase", "sst2": "toy:sentiment"}
_ROWS = {"quick": 64, "full": 512}


class ZeroShotRows(Config):
    """Rows of a task that is not trained; fields of every recipe that knows what a model was before."""

    zero_shot: str | None = Field(
        None,
        description="rows of a task that is not trained, on which lost generality is measured too; none: toy rows",
        json_schema_extra=_DATA,
    )
    zero_shot_task: Literal["auto", "paraphrase", "sst2"] = Field(
        "auto",
        description="their task; auto: paraphrase, or sst2 where paraphrase is trained",
        json_schema_extra=_DATA,
    )

    def zero_shot_probe(
        self,
        level: Literal["off", "quick", "full"],
        trained: Task,
        base: Decoder | None,
        tokenizer: Tokenizer,
        batch_size: int,
    ) -> ZeroShot | None:
        """Return the probe, with the base's answers.

        Args:
            level: how many rows are asked; ``off`` asks nothing.
            trained: the task that the model was trained on.
            base: the model before; one whose head tells classes, or whose context is too short for the prompts, can
                answer nothing: None then, as without a base.
            tokenizer: of both.
            batch_size: prompts at once.

        Raises:
            DataError: the rows cannot be read as the task's.
        """
        if level == "off" or base is None or base.config.classes is not None:
            return None
        name = self.zero_shot_task
        if name == "auto":
            name = "sst2" if trained.name == "paraphrase" else "paraphrase"
        asked: Task = Paraphrase() if name == "paraphrase" else SST2()
        source = self.zero_shot or _TOYS[name]
        found = asked.read(source, columns={}, limit=_ROWS[level], separator="")
        measuring = Measuring(batch_size=batch_size)

        def ask(model: Decoder) -> Scores:
            return asked.evaluate(model, tokenizer, found, measuring, asked.decoding()).scores

        return ZeroShot.of(ask, base, f"{asked.name} ({source})")
