"""Every task by name: the registration line of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

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
    Text.name: Text,
    QuestionAnswering.name: QuestionAnswering,
    Sonnets.name: Sonnets,
    Sentiment.name: Sentiment,
    Paraphrase.name: Paraphrase,
    SST2.name: SST2,
    GSM8K.name: GSM8K,
    Instructions.name: Instructions,
    Preferences.name: Preferences,
}

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = Annotated[Union[tuple(TASKS.values())], Field(discriminator="kind")]  # noqa: UP007
"""The same as a field of a recipe: a mapping's ``kind`` picks its class."""
