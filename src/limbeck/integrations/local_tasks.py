"""Rows of local files for lm-eval's tasks, and the shots that the project's own tasks would show.

The task files beside this module name these functions; lm-eval calls them with the metadata of its task manager:
``limbeck_sst2`` is the file to measure on, ``limbeck_sst2_examples`` the one to draw shots from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.samplers import ContextSampler

from limbeck.data.audit.rows import wordy_fields
from limbeck.data.readers import Row, Rows, read
from limbeck.data.splits import normalise
from limbeck.errors import ConfigError
from limbeck.integrations import lm_eval as _model
from limbeck.integrations.items import ROW_ID
from limbeck.tasks.classification import labels_of
from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.shots import draw_shots
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Task
from limbeck.tasks.text import Text

__all__ = ["LIMIT", "GSM8KShots", "SST2Shots", "gsm8k", "local_splits", "sst2", "text"]

del _model  # imported for what it does: lm-eval's command line reads a task file first, and so knows the model too

LIMIT = "limbeck_limit"
"""Metadata: read only so many rows to measure on."""

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")


def sst2(**metadata: Any) -> dict[str, Dataset]:
    """Return rows of ``limbeck_sst2`` and, where named, of ``limbeck_sst2_examples``, labels as numbers."""
    rows, examples = _read(SST2(), "limbeck_sst2", metadata)
    return {"test": _dataset(_numbered(rows)), "train": _dataset(_numbered(_unmeasured(examples, rows, ("sentence",))))}


def gsm8k(**metadata: Any) -> dict[str, Dataset]:
    """Return rows of ``limbeck_gsm8k`` and, where named, of ``limbeck_gsm8k_examples``."""
    rows, examples = _read(GSM8K(), "limbeck_gsm8k", metadata)
    return {"test": _dataset(rows), "train": _dataset(_unmeasured(examples, rows, ("question",)))}


def text(**metadata: Any) -> dict[str, Dataset]:
    """Return documents of ``limbeck_text``."""
    rows, _ = _read(Text(), "limbeck_text", metadata)
    return {"test": _dataset(rows)}


def local_splits(config: Mapping[str, Any], source: str, examples: str | None, limit: int | None) -> dict[str, Dataset]:
    """Return splits of a task of lm-eval's own from local files, instead of the data set that its file names.

    Columns of whole numbers become numbers, as lm-eval's tasks want their labels.

    Args:
        config: of the task; its splits are read.
        source: rows to measure on.
        examples: rows to draw shots from; those whose texts are measured are left out.
        limit: read only so many rows to measure on.

    Raises:
        DataError: a file is missing or damaged.
    """
    rows = read(source, limit=limit)
    shown = rows if examples is None else _unmeasured(read(examples), rows, wordy_fields(rows))
    measured = config.get("test_split") or config.get("validation_split")
    inside = config.get("fewshot_config") or {}
    others = [config.get(f"{k}_split") for k in ("training", "validation", "fewshot")] + [inside.get("split")]
    numbers = {name for name in rows.columns if _whole([*rows, *(shown or ())], name)}
    return {str(name): _dataset(shown, numbers) for name in others if name} | {str(measured): _dataset(rows, numbers)}


class _Shots(ContextSampler):  # type: ignore[misc]  # lm-eval has no types
    """The examples that ``tasks.shots.draw_shots`` draws by lm-eval's few-shot seed: the same for every item."""

    by = ""

    def __init__(self, df: Sequence[dict[str, Any]] | None = None, *, rnd: int | None = None, **more: Any) -> None:
        super().__init__(df, rnd=rnd, **more)
        self._seed, self._drawn = rnd or 0, dict[tuple[int, int], list[dict[str, Any]]]()

    def set_rnd(self, rnd: int | None) -> _Shots:
        """Set the seed of the drawing."""
        self._seed = rnd or 0
        return self

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **more: Any) -> list[dict[str, Any]]:
        """Draw ``n`` examples; measured rows were left out when the files were read.

        Raises:
            ConfigError: there are none to draw from.
            DataError: there are too few.
        """
        if (n, self._seed) not in self._drawn:
            rows = Rows.of((Row(str(d[ROW_ID]), d) for d in self.df), "the rows of examples")
            none = Rows.of((), "no rows")
            found = draw_shots(rows if len(rows) else None, none, n, self._seed, by=self.by, groups=self._groups(rows))
            self._drawn[n, self._seed] = [dict(row.fields) for row in found]
        return self._drawn[n, self._seed]

    def _groups(self, rows: Rows) -> list[int] | None:
        return None


class SST2Shots(_Shots):
    """As many examples of each class as can be."""

    by = "sentence"

    def _groups(self, rows: Rows) -> list[int]:
        return labels_of(rows, "label", ("0", "1"))


class GSM8KShots(_Shots):
    """Solved problems."""

    by = "question"


def _read(task: Task, name: str, metadata: Mapping[str, Any]) -> tuple[Rows, Rows | None]:
    if name not in metadata:
        raise ConfigError(
            f"{name} takes its rows from a file: name it by {name}=FILE, in --rows of limbeck harness or in "
            "--metadata of lm_eval"
        )
    rows = task.read(str(metadata[name]), columns={}, limit=metadata.get(LIMIT), separator="<|endoftext|>")
    examples = metadata.get(f"{name}_examples")
    return rows, None if examples is None else task.read(str(examples), columns={}, limit=None, separator="")


def _unmeasured(examples: Rows | None, rows: Rows, by: Sequence[str]) -> Rows | None:
    """Return the rows of ``examples`` that equal none of ``rows`` in the fields ``by``."""
    if examples is None:
        return None
    measured = {_key(row, by) for row in rows}
    return Rows.of((row for row in examples if _key(row, by) not in measured), examples.source)


def _key(row: Row, by: Sequence[str]) -> tuple[str, ...]:
    return tuple(normalise(row.fields.get(name, "")) for name in by)


def _numbered(rows: Rows | None) -> Rows | None:
    if rows is None:
        return None
    classes = labels_of(rows, "label", ("0", "1"))  # a label outside the set is an error that names its row
    return Rows.of((Row(r.id, {**r.fields, "label": c}) for r, c in zip(rows, classes, strict=True)), rows.source)


def _whole(rows: Sequence[Row], name: str) -> bool:
    return all(_WHOLE.fullmatch(str(row.fields.get(name))) for row in rows)


def _dataset(rows: Rows | None, numbers: Sequence[str] | set[str] = ()) -> Dataset:
    """Documents with their rows' ids; none for no rows."""
    return Dataset.from_list(
        [{k: int(v) if k in numbers else v for k, v in row.fields.items()} | {ROW_ID: row.id} for row in rows or ()]
    )
