"""Running lm-eval's tasks for ``limbeck harness``, and its results as scores an item."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from limbeck.errors import ConfigError, DataError, LimbeckError, nearest
from limbeck.formats.load import Bundle
from limbeck.integrations.items import found_of, item_id, label_of
from limbeck.integrations.lm_eval import LimbeckLM
from limbeck.integrations.local_tasks import LIMIT, local_splits
from limbeck.jobs.harness import Asked, Found

__all__ = ["LOCAL", "run"]

LOCAL = Path(__file__).parent / "tasks"
"""Folder of the task files that come with the package."""

_EXAMPLES = "_examples"


def run(bundle: Bundle, asked: Asked) -> list[Found]:
    """Load the tasks, let lm-eval ask the model, and read what it logged for each item.

    Raises:
        ConfigError: an unknown task, data for none of them, or a chat where the model has no template.
        DataError: a task's data cannot be had, or has a label that is none of the choices.
    """
    lm = LimbeckLM.of(
        bundle, batch_size=asked.measuring.batch_size, max_length=asked.measuring.context, seed=asked.seed
    )
    if asked.chat and not lm.chat_template():
        raise ConfigError(f"{bundle.source} has no chat template: leave out --chat")
    with _aside(asked.quiet):
        loaded = _loaded(asked)
        for name, task in loaded["tasks"].items():
            _check_labels(name, task, asked.limit)
            if asked.shots is not None:
                task.set_config("num_fewshot", asked.shots)
            task.set_fewshot_seed(asked.seed)
        results = evaluate(
            lm,
            loaded,
            limit=asked.limit,
            bootstrap_iters=0,  # the intervals are our own
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=asked.chat,
        )
    told = lm.answers.told()
    common = {
        "harness": f"lm-eval {version('lm_eval')}",
        "context": lm.max_length,
        "chat_template": asked.chat,
        "shot_seed": asked.seed,
    }
    return [
        found_of(name, task, results["samples"][name], results["results"][name], common, told)
        for name, task in loaded["tasks"].items()
    ]


@contextlib.contextmanager
def _aside(quiet: bool) -> Iterator[None]:
    """Send what lm-eval prints to stderr, and nowhere where nothing is to be written for people."""
    log = logging.getLogger("lm_eval")
    level = log.level
    with contextlib.ExitStack() as stack:
        stack.callback(log.setLevel, level)
        log.setLevel(logging.ERROR)  # its warnings are hints for its own command line
        stack.enter_context(contextlib.redirect_stderr(io.StringIO() if quiet else sys.stderr))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _loaded(asked: Asked) -> Mapping[str, Any]:
    """Return the tasks by name, each with its data in memory."""
    folders = [str(LOCAL), *([asked.path] if asked.path else [])]
    if asked.path and not Path(asked.path).is_dir():
        raise ConfigError(f"--task-path {asked.path} is no folder of task files")
    metadata = {**asked.data, **({LIMIT: asked.limit} if asked.limit else {})}
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if not all(_is_file(name) or name in manager.all_tasks for name in asked.tasks):
        manager = TaskManager(include_path=folders, metadata=metadata)  # its index takes seconds
    entries = [_entry(manager, name) for name in asked.tasks]
    known = {entry.name for entry in entries}
    strange = [key for key in asked.data if key.removesuffix(_EXAMPLES) not in known]
    if strange:
        hint = nearest(strange[0], known)
        raise ConfigError(f"--rows names '{strange[0]}', and no such task is asked for{hint}")
    try:
        return dict(manager.load([_specified(entry, asked) for entry in entries]))
    except LimbeckError:
        raise
    except Exception as error:  # those of YAML files, of data sets and of the Hub share no class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"lm-eval cannot load {', '.join(asked.tasks)}: {reason}; rows of your own are named by --rows TASK=FILE"
        ) from None


def _check_labels(name: str, task: Any, limit: int | None) -> None:
    """Refuse right answers that are none of an item's choices, before the model is asked."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return
    for number, doc in task.doc_iterator(limit=limit):
        target = task.doc_to_target(doc)
        if isinstance(target, int | str):
            label_of(name, item_id(doc, number), target, [str(c).strip() for c in task.doc_to_choice(doc)])


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _entry(manager: Any, name: str) -> Any:
    """Index entry of a task, group or tag, or of a task file."""
    if name in manager.task_index:
        return manager.task_index[name]
    found = None
    if _is_file(name):
        try:
            found = TaskIndex.entry_from_path(Path(name))
        except Exception as error:  # a YAML parser's, or what lm-eval finds missing
            raise ConfigError(f"{name} is no task file: {' '.join(str(error).split())}") from None
    if found is None:
        hint = nearest(name, manager.all_tasks)
        raise ConfigError(f"there is no task '{name}', here or in lm-eval {version('lm_eval')}{hint}")
    return found


def _specified(entry: Any, asked: Asked) -> Any:
    """Return what the manager is to load: the name or file, or its content with rows of local files in it."""
    name = str(entry.yaml_path) if entry.kind is Kind.TASK else entry.name
    source = asked.data.get(entry.name)
    config = load_yaml(entry.yaml_path, resolve_func=True) if entry.kind is Kind.TASK else {}
    if source is None or "custom_dataset" in config:
        return name
    if not config:
        raise ConfigError(f"--rows is for single tasks, and '{entry.name}' is none: name its tasks")
    examples = asked.data.get(f"{entry.name}{_EXAMPLES}")
    shots = asked.shots if asked.shots is not None else config.get("num_fewshot") or 0
    if shots and examples is None and "samples" not in (config.get("fewshot_config") or {}):
        raise ConfigError(
            f"'{entry.name}' shows {shots} examples: name their rows, --rows {entry.name}{_EXAMPLES}=FILE, or "
            "give --shots 0"
        )
    splits = local_splits(config, source, examples, asked.limit)

    def rows(**metadata: Any) -> Mapping[str, Any]:
        del metadata  # the files are read already
        return splits

    metadata = {**_mapping(config.get("metadata")), "rows": source}
    return {**config, "custom_dataset": rows, "dataset_kwargs": None, "metadata": metadata}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
