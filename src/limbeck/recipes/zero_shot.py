"""Which zero-shot task a run is asked beside its own, and on which rows."""

from __future__ import annotations

from limbeck.measure.probe_zero_shot import ZeroShot
from limbeck.measure.scores import Scores
from limbeck.model.decoder import Decoder
from limbeck.recipes.choices import Choices
from limbeck.recipes.start import Start
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Measuring, Task

__all__ = ["zero_shot_probe"]

_TOYS = {"paraphrase": "toy:paraphrase", "sst2": "toy:sentiment"}
_ROWS = {"quick": 64, "full": 512}


def zero_shot_probe(chosen: Choices, start: Start) -> ZeroShot | None:
    """The probe, with the base's answers.

    Args:
        chosen: its ``zero_shot`` rows (none: toy ones), their task, and the task that the run trains.
        start: the base; one of random weights, one whose head tells classes, or one whose context is too short for the
            prompts can answer nothing: None then, as where probes are off.

    Raises:
        DataError: the rows cannot be read as the task's.
    """
    if chosen.dry_run or chosen.probes == "off" or start.fresh or start.model.config.classes is not None:
        return None
    name = chosen.zero_shot_task
    if name == "auto":
        name = "sst2" if chosen.task.name == "paraphrase" else "paraphrase"
    asked: Task = Paraphrase() if name == "paraphrase" else SST2()
    source = chosen.zero_shot or _TOYS[name]
    found = asked.read(source, columns={}, limit=_ROWS[chosen.probes], separator="")
    measuring = Measuring(batch_size=chosen.measuring.batch_size)

    def ask(model: Decoder) -> Scores:
        return asked.evaluate(model, start.tokenizer, found, measuring, asked.decoding()).scores

    return ZeroShot.of(ask, start.model, f"{asked.name} ({source})")
