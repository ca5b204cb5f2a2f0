"""What a job returns to Python: its figures, its alarms, its model, its page."""

from __future__ import annotations

import html
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display
from limbeck.storage import write_text

__all__ = ["Alarmed", "Metric", "JobResult"]


@dataclass(frozen=True)
class Metric:
    """A figure with its interval.

    Attributes:
        name: such as ``nats per token``.
        value: the figure.
        low: lower end of the interval.
        high: upper end of the interval.
        level: level of the interval, 0 to 1.
        unit: unit of the figure, or empty.
        better: ``lower`` or ``higher``, or empty where no way is better.
        items: number of items that it was measured on.
        protocol: how it was measured.

    >>> import limbeck
    >>> print(limbeck.Metric("nats per token", 2.5, 2.4, 2.6))
    2.5 [2.4, 2.6]
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    unit: str = ""
    better: str = ""
    items: int | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Alarmed:
    """An alarm of a run.

    Attributes:
        name: of the check.
        fired: whether the value passed the threshold.
        sentence: what was found, in words.
    """

    name: str
    fired: bool
    sentence: str


class JobResult:
    """The result of a job.

    Attributes:
        verb: the job.
        report: everything that was found, as plain values: what ``--json`` prints on the command line.
        path: the folder or file that the job wrote, or None where it wrote none.

    >>> import limbeck
    >>> result = limbeck.evaluate("runs/tiny", "toy:stories", limit=5, probes="off", out="runs/measured")
    >>> isinstance(result, limbeck.JobResult), sorted(result.metrics)[0]
    (True, 'nats per byte')
    >>> result.open(show=False).name
    'report.html'
    """

    def __init__(
        self, verb: str, report: Mapping[str, Any], load: Callable[[str], Any], out: str | None = None
    ) -> None:
        self.verb, self.report, self._load = verb, dict(report), load
        page = self.report.get("page")
        told = [self.report.get("run"), out, self.report.get("folder"), Path(page).parent if page else None]
        self.path = next((Path(where) for where in told if isinstance(where, str | Path)), None)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Figures by name, each with its interval."""
        protocol = self.report.get("protocol") or {}
        return {name: _metric(name, values, protocol) for name, values in (self.report.get("metrics") or {}).items()}

    @property
    def alarms(self) -> list[Alarmed]:
        """Alarms that fired."""
        listed = self.report.get("alarms") or []
        return [Alarmed(a["name"], True, a["sentence"]) for a in listed if a.get("fired")]

    @cached_property
    def model(self) -> Any:
        """The ``LanguageModel`` that the job made, loaded when it is first asked for.

        Raises:
            ConfigError: the job made none.
        """
        if self.path is None or not (self.path / "model").is_dir():
            raise ConfigError(f"'{self.verb}' made no model: finetune, distill, quantize, dpo and pretrain make one")
        return self._load(str(self.path if (self.path / "recipe.yaml").is_file() else self.path / "model"))

    def page(self) -> str:
        """Return the result as an HTML page of its own."""
        return (
            "<!doctype html><html lang='en'><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>limbeck {html.escape(self.verb)}</title><style>{_STYLE}</style>"
            f"<main>{self._repr_html_()}</main></html>"
        )

    def open(self, show: bool = True) -> Path:
        """Write the page to ``report.html`` in the job's folder, show it in a browser and return its path.

        Of a run it is the page that ``limbeck report`` writes; a study's or report's own page is shown as it is.

        Args:
            show: False only writes the page.

        Raises:
            ConfigError: the job wrote no folder.
        """
        if self.path is None:
            raise ConfigError(f"this '{self.verb}' wrote no folder: give out to keep a page of it")
        page = self._page(self.path)
        if show:
            webbrowser.open(page.resolve().as_uri())
        return page

    def _page(self, folder: Path) -> Path:
        """Return the file of the page, written where there is none yet."""
        if isinstance(own := self.report.get("page"), str):
            return Path(own)
        if (folder / "study.html").is_file():
            return folder / "study.html"
        if folder.is_dir() and (folder / "recipe.yaml").is_file():
            from limbeck.study.report import WriteReport  # here, as plotly takes a while to import

            return Path(WriteReport(runs=(str(folder),)).run(Display.silent()).values["page"])
        file = (folder if folder.is_dir() else folder.parent) / "report.html"
        write_text(file, self.page())
        return file

    def __repr__(self) -> str:
        told = [f"{name} {metric}" for name, metric in self.metrics.items()][:3]
        told += [f"{len(self.alarms)} alarms"] if self.alarms else []
        told += [] if self.path is None else [str(self.path)]
        return f"<{self.verb}: {', '.join(told) or 'done'}>"

    def _repr_html_(self) -> str:
        parts = [f"<h3>{html.escape(self.verb)}</h3>"]
        rows = [(m.name, str(m), m.unit, "" if m.items is None else f"{m.items:,}") for m in self.metrics.values()]
        if rows:
            parts.append(_table(("figure", "value and interval", "unit", "items"), rows))
        compared = self.report.get("comparisons")
        if isinstance(compared, Mapping) and compared:
            parts.append(_table(("figure", "verdict"), [(n, str(c.get("verdict", ""))) for n, c in compared.items()]))
        cost = _cost(self.report.get("cost") or {})
        if cost:
            parts.append(_table(("cost", ""), cost))
        parts += [f"<p><b>alarm {html.escape(a.name)}</b>: {html.escape(a.sentence)}</p>" for a in self.alarms]
        if self.path is not None:
            parts.append(f"<p><code>{html.escape(str(self.path))}</code></p>")
        return "".join(parts)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#1a1a1a;background:#fff}"
    "main{max-width:60rem;margin:auto;padding:1rem;overflow-x:auto}table{border-collapse:collapse;margin:1rem 0}"
    "th,td{text-align:left;padding:.25rem .75rem;border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
)


def _metric(name: str, values: Any, protocol: Mapping[str, Any]) -> Metric:
    if not isinstance(values, Mapping):
        return Metric(name, float("nan") if values is None else float(values), protocol=protocol)
    number = values.get("value")
    return Metric(
        name, float("nan") if number is None else float(number), values.get("low"), values.get("high"),
        values.get("level"), str(values.get("unit") or ""), str(values.get("better") or ""), values.get("items"),
        protocol,
    )  # fmt: skip


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the size and speed of a model for people."""
    speed = cost.get("speed") or {}
    told = {
        "parameters": (cost.get("parameters"), "{:,}"),
        "bytes on disk": (cost.get("disk_bytes"), "{:,}"),
        "ms a token": (speed.get("decode_ms_per_token"), "{:.3g}"),
        "tokens a second": (speed.get("tokens_per_second"), "{:,.0f}"),
    }
    return [(name, form.format(value)) for name, (value, form) in told.items() if value is not None]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"
