"""``limbeck report``: one HTML page of a finished run, or of several that were measured on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from rich.text import Text

from limbeck.errors import DataError
from limbeck.jobs.comparison import evaluated
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.run import Run
from limbeck.storage import write_text
from limbeck.study.analysis import analyse, analysis_tables, answer
from limbeck.study.page import page
from limbeck.study.study import Finished
from limbeck.study.table import groups

__all__ = ["WriteReport"]


class WriteReport(Recipe):
    """Write report.html of finished runs: answer, table, charts, curves, samples, alarms, provenance.

    The first run is the reference that the others are compared with.
    """

    verb: ClassVar[str] = "report"
    summary: ClassVar[str] = "write one HTML page of finished runs, to be shown to others"
    files: ClassVar[tuple[str, ...] | None] = ("report.html",)

    runs: tuple[str, ...] = Field(
        min_length=1, description="run folders; the first is the reference", json_schema_extra={"positional": True}
    )
    title: str | None = Field(None, description="of the page; none: the first run's name")
    margin: float = Field(0.01, gt=0, lt=1, description="share of the main figure that may be lost")

    def run(self, session: Display) -> Report:
        """Read, analyse, write.

        Raises:
            DataError: a folder is no finished run, or two runs have one name.
        """
        arms = [_arm(Path(name)) for name in self.runs]
        if len({a.name for a in arms}) < len(arms):
            raise DataError("two of the runs have one name: give each folder once")
        shown = [a for a in arms if a.scores]
        grouped = groups(shown, (), None)
        several = [group for group in grouped if len(group.lines) > 1]
        analyses = [analyse(group, {}, margin=self.margin) for group in several]
        answers = [answer(group, one) for group, one in zip(several, analyses, strict=True)]
        tables = analysis_tables(analyses, {a.name: a.label for a in arms})
        title = self.title or Path(self.runs[0]).name
        file = Path(self.out) / "report.html" if self.out is not None else Path(self.runs[0]) / "report.html"
        write_text(file, page(title, grouped, (), arms, (), tables, answers))
        values = {"verb": self.verb, "page": str(file), "answers": answers, "analysis": [a.to_json() for a in analyses]}
        return Report(values, (*map(Text, answers), Text(f"page: {file}")))


def _arm(folder: Path) -> Finished:
    report = Run.open(folder).report()
    name = str(folder)
    if not report.get("scores") or not report.get("evaluated"):
        return Finished(name, folder.name, [report], [], ())
    found = evaluated(name, Path(report["scores"]).stem)
    return Finished(name, folder.name, [report], [found.scores], found.figures)
