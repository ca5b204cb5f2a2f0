"""The command line: verb -> recipe -> run -> report.

Neither ``limbeck --help`` nor a verb's help imports torch or pydantic: both are built from ``schema.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck import __version__
from limbeck.command.failures import Failure, failure_of
from limbeck.command.flags import Flag
from limbeck.command.verb import Verb, Verbs
from limbeck.errors import LimbeckWarning, nearest
from limbeck.old_names import OldNameWarning

if TYPE_CHECKING:
    from limbeck.jobs.recipe import Recipe

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 1 failure, 130 Ctrl-C.

    Args:
        argv: what follows ``limbeck``; None: the process's own arguments.
    """
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    _open_streams()
    _hush()
    try:
        _check_text(args)
        code = Verbs(_start, __version__).main(args, prog_name="limbeck", standalone_mode=False)
        sys.stdout.flush()  # a closed pipe is to fail here, where it is caught
        return code if isinstance(code, int) else 0
    except click.NoSuchOption as error:
        return _fail(Failure(_no_such_option(error), error.exit_code), args)
    except BaseException as error:  # everything ends as one sentence and an exit code
        return _fail(failure_of(error), args)


def _open_streams() -> None:
    """Give every stream that is closed (``>&-``) somewhere to write to, and let no character be unwritable."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY)
            if handle != number:  # no file that is opened later may take the number of a closed stream
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and hasattr(stream, "reconfigure"):
            encoding = (
                "utf-8" if stream.encoding.lower() in ("ascii", "ansi_x3.4-1968", "us-ascii") else stream.encoding
            )
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _check_text(args: Sequence[str]) -> None:
    """Refuse an argument that is not text.

    Raises:
        ConfigError: its bytes are none of this system's encoding, or hold a zero byte.
    """
    from limbeck.errors import ConfigError

    for place, text in enumerate(args, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"argument {place}, '{shown[:60]}', is not UTF-8: rename the file, or retype it"
            ) from None
        if "\0" in text:
            raise ConfigError(f"argument {place} holds a zero byte: leave it out")


def _start(verb: str, flags: Sequence[Flag], typed: Mapping[str, Any]) -> None:
    """Resolve the recipe from YAML and flags; print it, or run it and give its report."""
    from limbeck.config import dump
    from limbeck.errors import ConfigError
    from limbeck.jobs.recipe import Display

    _settle_allocator()
    recipe = _resolve(verb, flags, typed)
    if not recipe.on_ranks and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(f"'{verb}' is work for one process: start it without torchrun")
    as_json = bool(typed["json_output"])
    if typed["print_config"]:
        if not _first():
            return
        click.echo(json.dumps(recipe.model_dump(mode="json")) if as_json else dump(recipe), nl=as_json)
        return
    if _first():
        recipe.claim()
    quiet = bool(typed["quiet"])
    text = sys.stdout if not as_json else StringIO() if quiet else sys.stderr
    session = Display(text=text, quiet=quiet, progress=not quiet)
    # whatever a library prints must not stand beside the one JSON object
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        report = recipe.run(session)
        if not quiet:
            report.show(session.console)
    if as_json and report.values:  # a rank beside the first has none
        click.echo(report.to_json())


def _first() -> bool:
    """Is this the one process, or the first of torchrun's? Standard output is its alone."""
    return os.environ.get("RANK", "0") == "0"


def _settle_allocator() -> None:
    """Keep freed memory before torch takes any; ``LIMBECK_ALLOCATOR=system`` leaves glibc as it is."""
    from limbeck.errors import ConfigError
    from limbeck.kernels.allocator import keep_freed_memory

    try:
        keep_freed_memory()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _resolve(verb: str, flags: Sequence[Flag], typed: Mapping[str, Any]) -> Recipe:
    """Defaults <- YAML <- flags."""
    from limbeck.command.values import converted, overlay
    from limbeck.config import build, read
    from limbeck.old_names import kinds_now
    from limbeck.verbs.table import recipe

    given = []
    for flag, typed_as in typed["values"]:
        texts = (typed_as,) if isinstance(typed_as, str) else typed_as
        given.append((flag, typed_as if isinstance(typed_as, bool) else converted(flag, texts)))
    file = typed["config_file"]
    values = kinds_now(read(Path(file))) if file is not None else {}
    where = f"the flags of '{verb}'" if file is None else f"{file} and the flags" if given else file
    laid = overlay(values, flags, given)
    _check_complete(verb, flags, laid, file)
    return build(recipe(verb), laid, where)


def _check_complete(verb: str, flags: Sequence[Flag], values: Mapping[str, Any], file: str | None) -> None:
    """Refuse a recipe that lacks what it cannot do without, in the words of the command line.

    Raises:
        ConfigError: names each argument and flag that is missing.
    """
    from limbeck.command.verb import schema
    from limbeck.errors import ConfigError

    own = {f.path[0]: f for f in flags if f.member is None}
    wanted = [name for name in schema()["verbs"][verb]["schema"].get("required", ()) if name not in values]
    missing = sorted((own[name] for name in wanted if name in own), key=lambda f: not f.positional)
    if not missing:
        return
    names = [f.argument if f.positional else f.spellings[0] for f in missing]
    example = " ".join(f.argument if f.positional else f"{f.spellings[0]} ..." for f in missing)
    told = f"name them there or write limbeck {verb} {example}" if file else f"write limbeck {verb} {example}"
    said = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    raise ConfigError(f"'{verb}' needs {said}{f', which {file} does not hold' if file else ''}: {told}")


def _fail(failure: Failure, args: Sequence[str]) -> int:
    """Say what went wrong: a sentence on stderr, and the JSON object where one was asked for."""
    before_end = args[: args.index("--")] if "--" in args else args
    if not _first() and failure.message.startswith("rank 0 stopped"):  # which said so itself
        return failure.exit_code or 1
    if not failure.message:
        _forget_stdout()
        return failure.exit_code
    try:
        with contextlib.suppress(BrokenPipeError):  # nobody reads stderr any more
            print(f"limbeck: error: {failure.message}", file=sys.stderr)
        if "--json" in before_end and _first():
            told = {**failure.values, "error": failure.message, "exit_code": failure.exit_code}
            print(json.dumps(told, ensure_ascii=False))
        sys.stdout.flush()
    except OSError:  # stdout is closed or full, which may be the very failure
        _forget_stdout()
    return failure.exit_code or 1


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot complain about the closed pipe."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _no_such_option(error: click.NoSuchOption) -> str:
    """Name the unknown option, the verb, and the nearest option."""
    name = error.option_name
    command = error.ctx.command if error.ctx is not None else None
    known = [o for p in command.params for o in (*p.opts, *p.secondary_opts)] if command is not None else []
    verb = f"'{command.name}' has no option" if isinstance(command, Verb) else "there is no option"
    return f"{verb} {name}{nearest(name.replace('_', '-'), [o for o in known if o.startswith('-')])}"


def _hush() -> None:
    """Keep libraries' chatter off the terminal, unless the user asked Python for warnings; our own are shown."""
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    if not sys.warnoptions and not os.environ.get("LIMBECK_TRACEBACK"):
        warnings.simplefilter("ignore")
        for category in (LimbeckWarning, OldNameWarning):
            warnings.filterwarnings("default", category=category)
        warnings.filterwarnings("default", module=r"limbeck(\.|$)")
        warnings.formatwarning = _warning  # type: ignore[assignment]


def _warning(message: Warning | str, category: type[Warning], *_: object) -> str:
    """Write a warning as one line; the only ones that are shown are the project's own."""
    return f"limbeck: warning: {' '.join(str(message).split())}\n"
