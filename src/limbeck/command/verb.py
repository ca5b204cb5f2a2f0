"""click commands built from the committed schema."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import click
from click.shell_completion import CompletionItem

from limbeck.command.completion import choices_of, script
from limbeck.command.everyday import EXAMPLES, everyday
from limbeck.command.example import example
from limbeck.command.flags import MISSING, Flag, Member, flags_of
from limbeck.command.help import write
from limbeck.command.values import converted, overlay
from limbeck.errors import nearest
from limbeck.old_names import kind_now, warn

__all__ = ["Verb", "Verbs", "schema", "with_definitions"]

_EXTRA = (
    ("--config FILE", "YAML file of the recipe; flags override it"),
    ("--print-config", "print the resolved recipe as YAML and exit"),
    ("--print-example", "print a commented YAML file that this verb reads, and exit"),
    ("--json", "print exactly one JSON object to stdout at the end"),
    ("--quiet", "write nothing for people"),
    ("--help", "show the flags that most people use, and exit"),
    ("--help-all", "show every flag, and exit"),
)

_ALL, _KIND = "limbeck.help_all", "limbeck.help_technique"
_TECHNIQUES = (("techniques",), ("technique",))
"""Where a recipe holds techniques: several, or one."""

Start = Callable[[str, Sequence[Flag], Mapping[str, Any]], None]


@cache
def schema() -> Mapping[str, Any]:
    """Return the committed ``schema.json``: verb -> its summary and the JSON Schema of its recipe."""
    return with_definitions(json.loads(files("limbeck").joinpath("schema.json").read_text(encoding="utf-8")))


def with_definitions(found: dict[str, Any]) -> dict[str, Any]:
    """Return ``found``, which holds once the definitions that recipes share, with them in the schema of every verb."""
    for about in found["verbs"].values():
        about["schema"]["$defs"] = found["$defs"]
    return found


def _dashes(name: str) -> str:
    return name.replace("_", "-")


def _identifier(flag: Flag) -> str:
    """Return a name for click, which wants an identifier."""
    owner = f"{'_'.join(flag.member.union)}__{flag.member.kind}__" if flag.member else ""
    return (owner + "__".join(flag.path)).replace("-", "_")


class Verb(click.Command):
    """One verb: its flags come from the recipe's schema, its work is done by ``start``."""

    def __init__(self, name: str, entry: Mapping[str, Any], start: Start) -> None:
        self.entry = entry
        self.flags = flags_of(entry["schema"])
        known = {s for f in self.flags for s in (f.name, f.short)}
        self.old = {old: now for f in self.flags for old, now in f.old_spellings.items() if old not in known}
        self.intro = str(entry["schema"].get("description", entry["summary"]))
        members = [f.member for f in self.flags if f.member is not None and f.member.union in _TECHNIQUES]
        self.kinds = tuple(dict.fromkeys(member.kind for member in members))
        super().__init__(
            name,
            params=[*map(_parameter, self.flags), *_extra_parameters(), *self._help_parameters()],
            callback=lambda **given: start(name, self.flags, self._typed(given)),
            short_help=entry["summary"],
            context_settings={"token_normalize_func": self._current, "help_option_names": ["--help", "-h"]},
            add_help_option=True,
        )

    def _current(self, name: str) -> str:
        """Return an option as it is called now, with a warning where it was typed by an old name."""
        name = _dashes(name)
        if name in self.old:
            warn(f"--{name}", f"--{self.old[name]}")
        return self.old.get(name, name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, but answer a word too many with what to write instead.

        Raises:
            UsageError: there is one.
        """
        ctx.allow_extra_args = True
        left = super().parse_args(ctx, args)
        if left and not ctx.resilient_parsing:
            takes = " ".join(f.argument for f in self.flags if f.positional) or "no argument"
            named = [f for f in self.flags if not f.positional and (f.name == "model" or f.default is MISSING)]
            wanted = [f.spellings[0] for f in sorted(named, key=lambda f: f.name != "model")]
            hint = f": give each value its flag, such as {wanted[0]}" if wanted else ""
            raise click.UsageError(f"'{left[0]}' is one word too many: '{self.name}' takes {takes}{hint}", ctx)
        return left

    def _typed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was typed: flag identifiers to ``(flag, text or texts)``, the extra options by their names."""
        own = {_identifier(f): f for f in self.flags}
        values = [(own[k], v) for k, v in given.items() if k in own and v is not None and v != ()]
        return {"values": values, **{k: v for k, v in given.items() if k not in own}}

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the recipe's own description."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(self.intro.partition("\n\nAttributes:")[0].replace("``", "'"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write flags in sections: those most people use, every one, or those of one technique."""
        kind = ctx.meta.get(_KIND)
        if kind is not None:
            write(formatter, [f for f in self.flags if f.member in [Member(union, kind) for union in _TECHNIQUES]])
            return
        extra = [*_EXTRA, *([("--help-technique NAME", "show the flags of one technique")] if self.kinds else [])]
        if ctx.meta.get(_ALL):
            write(formatter, self.flags, extra)
            return
        shown = everyday(self.flags, len(extra))
        write(formatter, shown, extra)
        if self.name in EXAMPLES:
            with formatter.section("example"):
                formatter.write(f"{'':{formatter.current_indent}}{EXAMPLES[self.name]}\n")
        left = len(self.flags) - len(shown)
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} more flags: limbeck {self.name} --help-all")

    def example(self) -> str:
        """Return a commented YAML file for ``--config`` with the values of the verb's example."""
        found: dict[str, Any] = {}

        def values(_: str, flags: Sequence[Flag], typed: Mapping[str, Any]) -> None:
            one = [(flag, (text,) if isinstance(text, str) else text) for flag, text in typed["values"]]
            given = [(flag, texts if isinstance(texts, bool) else converted(flag, texts)) for flag, texts in one]
            found.update(overlay({}, flags, given))

        words = shlex.split(EXAMPLES.get(str(self.name), f"limbeck {self.name}"))[2:]
        Verb(str(self.name), self.entry, values).main(words, standalone_mode=False)
        return example(str(self.name), self.entry, self.flags, everyday(self.flags, 0), found)

    def _help_parameters(self) -> list[click.Parameter]:
        """Return the options that show other parts of the help."""

        def show_all(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
            if asked and not ctx.resilient_parsing:
                ctx.meta[_ALL] = True
                click.echo(ctx.get_help())
                ctx.exit()

        def show_one(ctx: click.Context, _: click.Parameter, kind: str | None) -> None:
            if kind is None or ctx.resilient_parsing:
                return
            kind = kind_now(kind.replace("-", "_"))
            if kind not in self.kinds:
                raise click.UsageError(
                    f"--help-technique is one of {', '.join(self.kinds)}, not '{kind}'{nearest(kind, self.kinds)}", ctx
                )
            ctx.meta[_KIND] = kind
            click.echo(ctx.get_help())
            ctx.exit()

        def show_example(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
            if asked and not ctx.resilient_parsing:
                click.echo(self.example(), nl=False)
                ctx.exit()

        eager: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
        out: list[click.Parameter] = [
            click.Option(["--help-all"], callback=show_all, **eager),
            click.Option(["--print-example"], callback=show_example, **eager),
        ]
        if self.kinds:
            out.append(
                click.Option(["--help-technique"], type=str, is_eager=True, expose_value=False, callback=show_one)
            )
        return out


def _parameter(flag: Flag) -> click.Parameter:
    name = _identifier(flag)
    many = flag.form in ("list", "unions", "mapping")
    if flag.form == "switch" and not flag.positional:
        spellings = [f"{s}/--no-{s[2:]}" for s in flag.spellings]
        return click.Option([name, *spellings], default=None, is_flag=True)

    def completed(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        return choices_of(flag, typed)

    given: dict[str, Any] = {"type": str, "shell_complete": completed}
    if flag.positional:
        return click.Argument([name], required=False, nargs=-1 if many else 1, metavar=flag.argument, **given)
    return click.Option([name, *flag.spellings], default=None, multiple=many, **given)


def _extra_parameters() -> list[click.Parameter]:
    return [
        click.Option(["config_file", "--config"], default=None, type=str),
        click.Option(["print_config", "--print-config"], is_flag=True, default=False),
        click.Option(["json_output", "--json"], is_flag=True, default=False),
        click.Option(["quiet", "--quiet"], is_flag=True, default=False),
    ]


class Verbs(click.Group):
    """Every verb of the schema, built when it is asked for."""

    def __init__(self, start: Start, version: str) -> None:
        self.start = start
        super().__init__(
            "limbeck",
            help="Adapts and shrinks GPT-class language models and shows what each saving costs.",
            epilog="A model is named by a folder, a run, a .gguf file or a Hub id; data by a path, toy:NAME or a Hub "
            "id. limbeck VERB --help lists the flags of a verb, limbeck VERB --print-example prints a YAML "
            'file for it. For completion in bash: eval "$(limbeck --print-completion bash)"; zsh and fish work too.',
            params=[
                click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version),
                click.Option(
                    ["--print-completion"],
                    metavar="SHELL",
                    is_eager=True,
                    expose_value=False,
                    callback=_completion,
                    help="print the script that completes limbeck in bash, zsh or fish, and exit",
                ),
            ],  # fmt: skip
            context_settings={
                "help_option_names": ["--help", "-h"],
                "token_normalize_func": _dashes,
                "max_content_width": 112,
                "obj": version,
            },
            subcommand_metavar="VERB [OPTIONS]",
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return verbs in the order of the table."""
        return list(schema()["verbs"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Build one verb."""
        entry = schema()["verbs"].get(cmd_name)
        return None if entry is None else Verb(cmd_name, entry, self.start)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest."""
        name = _dashes(args[0])
        if name.startswith("-") or name in schema()["verbs"]:
            return super().resolve_command(ctx, [name, *args[1:]])
        raise click.UsageError(f"there is no verb '{args[0]}'{nearest(name, schema()['verbs'])}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without building them."""
        with formatter.section("verbs"):
            formatter.write_dl([(name, schema()["verbs"][name]["summary"]) for name in self.list_commands(ctx)])


def _completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell is not None and not ctx.resilient_parsing:
        click.echo(script(ctx.command, shell))
        ctx.exit(0)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"limbeck {ctx.obj}")
        ctx.exit(0)
