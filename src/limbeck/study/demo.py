"""``limbeck demo``: the main job on embedded toy data, as a study."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.study.study import check_study_folder, read_plan, run_plan

__all__ = ["Demo"]


class Demo(Recipe):
    """Train a teacher on toy stories, distil it, train the same student alone, adapt it to verse, and compare."""

    verb: ClassVar[str] = "demo"
    summary: ClassVar[str] = "train, distil, adapt and compare small models on toy data, in about three minutes"

    def claim(self) -> None:
        """Refuse a folder that holds more than the demo's arms and tables."""
        check_study_folder(read_plan(Path(__file__).with_name("demo.yaml")), Path(self.out or "runs/demo"))

    def run(self, session: Display) -> Report:
        """Run the study that is shipped with the package."""
        plan = read_plan(Path(__file__).with_name("demo.yaml"))
        plan = plan.model_copy(update={"seeds": tuple(self.seed + s for s in plan.seeds)})
        return run_plan(plan, Path(self.out or "runs/demo"), session)
