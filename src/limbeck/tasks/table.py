"""Every task by name: the registration line of a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.instructions import Instructions
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.preferences import Preferences
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.sentiment import Sentiment
from limbeck.tasks.sonnets import Sonnets
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Task
from limbeck.tasks.text import Text

__all__ = ["TASKS", "AnyTask"]

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "qa": QuestionAnswering,
    "sonnets": Sonnets,
    "sentiment": Sentiment,
    "paraphrase": Paraphrase,
    "sst2": SST2,
    "gsm8k": GSM8K,
    "instructions": Instructions,
    "preferences": Preferences,
}

AnyTask = Annotated[
    Text | QuestionAnswering | Sonnets | Sentiment | Paraphrase | SST2 | GSM8K | Instructions | Preferences,
    Field(discriminator="kind"),
]
"""The same as a field of a recipe: a mapping's ``kind`` picks its class."""
