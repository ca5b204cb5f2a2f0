"""Every task by name: the registration line of a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.sonnets import Sonnets
from limbeck.tasks.task import Task
from limbeck.tasks.text import Text

__all__ = ["TASKS", "AnyTask"]

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "qa": QuestionAnswering,
    "sonnets": Sonnets,
}

AnyTask = Annotated[Text | QuestionAnswering | Sonnets, Field(discriminator="kind")]
"""The same as a field of a recipe: a mapping's ``kind`` picks its class."""
