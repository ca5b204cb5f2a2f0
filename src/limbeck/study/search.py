"""The search: Optuna proposes, what cannot fit is refused, a probe is paid before the arm, the best is chosen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from limbeck.errors import ConfigError, RunError
from limbeck.jobs.recipe import Display
from limbeck.study.candidates import Candidate, Workshop, random_cost
from limbeck.study.limits import Limit, SearchGoal, excess, parse_limits, parse_objectives
from limbeck.study.price import predict
from limbeck.study.space import ChainStep, Knob, SearchPlan, knobs_of

__all__ = ["FoundTrial", "Search", "chosen", "default_storage", "distributions", "open_storage"]

_HEARTBEAT_SECONDS = 30
_RETRIES = 2
_SLACK = 1.10  # random weights are timed in another minute than the arm: so much slower is not yet refused


@dataclass(frozen=True)
class FoundTrial:
    """One finished trial.

    Attributes:
        number: of the trial.
        knobs: what was chosen.
        model: folder of its last run.
        values: measure -> value.
        excess: limit -> share by which it is broken; 0 or less: it holds.
        seconds: that it took.
    """

    number: int
    knobs: Mapping[str, Any]
    model: str
    values: Mapping[str, float | None]
    excess: Mapping[str, float]
    seconds: float

    @property
    def fits(self) -> bool:
        """Every limit holds."""
        return all(v <= 0 for v in self.excess.values())

    @property
    def worst(self) -> float:
        """Sum of the shares by which limits are broken."""
        return sum(max(v, 0.0) for v in self.excess.values())


def distributions(plan: SearchPlan, pipeline: str) -> dict[str, BaseDistribution]:
    """Return the Optuna distribution of every knob that a chain names, in the order of the space."""
    named = {k for step in plan.pipelines[pipeline] for k in knobs_of(step.values)}
    return {name: _distribution(knob) for name, knob in plan.space.items() if name in named}


def _distribution(knob: Knob) -> BaseDistribution:
    if knob.choices:
        return CategoricalDistribution([c if isinstance(c, str | int | float | bool) else str(c) for c in knob.choices])
    assert knob.low is not None and knob.high is not None
    if knob.whole:
        return IntDistribution(int(knob.low), int(knob.high), log=knob.log)
    return FloatDistribution(knob.low, knob.high, log=knob.log)


def open_storage(url: str) -> BaseStorage:
    """Open ``sqlite:///FILE``, ``postgresql://...`` or ``journal:FILE``; several workers may share it.

    Workers of a database send a heartbeat; the trial of one that stops is taken up again, at most twice.

    Raises:
        ConfigError: the database cannot be reached, or the URL is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks storages with heartbeat as experimental
        try:
            if url.startswith("journal:"):
                return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
            again = RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)
            return RDBStorage(url, heartbeat_interval=_HEARTBEAT_SECONDS, heartbeat_stale_trial_callback=again)
        except Exception as error:  # SQLAlchemy's and the driver's errors have no class in common
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"storage {url} cannot be opened: {first}; give sqlite:///FILE or journal:FILE") from None


class Search:
    """One worker of a search.

    Args:
        plan: what is searched.
        workshop: makes and measures candidates.
        storage: URL of the trials.
        seed: of the sampler.
        session: for people.
    """

    def __init__(self, plan: SearchPlan, workshop: Workshop, storage: str, seed: int, session: Display) -> None:
        self.plan, self.workshop, self.session = plan, workshop, session
        known = workshop.known()
        self.limits: tuple[Limit, ...] = parse_limits(plan.limits, known)
        self.objectives: tuple[SearchGoal, ...] = parse_objectives(plan.objective, known)
        if plan.rungs and len(self.objectives) > 1:
            raise ConfigError("successive halving needs one objective: leave out 'rungs', or name one objective")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=plan.startup)
        pruner = optuna.pruners.SuccessiveHalvingPruner() if plan.rungs else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            storage=open_storage(storage), study_name="limbeck", load_if_exists=True, sampler=sampler, pruner=pruner,
            directions=["maximize" if o.sense == "maximise" else "minimize" for o in self.objectives],
        )  # fmt: skip

    def run(self) -> None:
        """Try candidates until the plan's number is reached, over all workers."""
        while self._count() < self.plan.trials:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", category=FutureWarning)
                    self.study.optimize(self._trial, n_trials=1)
            except (OSError, optuna.exceptions.StorageInternalError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise RunError(f"the storage of the search went away: {first}; run the command again") from None

    def found(self) -> list[FoundTrial]:
        """Return every trial that was made and measured."""
        return [_found(t, self.limits) for t in self.study.get_trials(deepcopy=False) if "model" in t.user_attrs]

    def refused(self) -> list[str]:
        """Return why trials were not made, each in a sentence."""
        return [t.user_attrs["refused"] for t in self.study.get_trials(deepcopy=False) if "refused" in t.user_attrs]

    def _count(self) -> int:
        return len([t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.FAIL])

    def _trial(self, trial: Trial) -> tuple[float, ...] | float:
        knobs = self._suggest(trial)
        steps = self.plan.steps(knobs)
        trial.set_user_attr("knobs", knobs)
        told = f"[bold]{trial.number + 1}/{self.plan.trials}[/bold] " + ", ".join(f"{k} {v}" for k, v in knobs.items())
        self.session.say(told)
        self._refuse_what_cannot_fit(trial, steps)
        self._price(trial, steps)
        for rung in self.plan.rungs:
            at = self._made(trial, steps, rung).values.get(self.objectives[0].name)
            if at is not None:
                trial.report(at, step=round(1000 * rung))
                if trial.should_prune():
                    self._refuse(trial, f"dropped at {rung:.0%} of its steps: {self.objectives[0].name} {at:.4g}")
        made = self._made(trial, steps, 1.0)
        over = excess(self.limits, made.values)
        for name, value in over.items():
            trial.set_constraint(name, min(value, 1e9))
        trial.set_user_attr("values", dict(made.values))
        trial.set_user_attr("seconds", made.seconds)
        trial.set_user_attr("model", made.model)
        figures = [made.values.get(o.name) for o in self.objectives]
        if any(f is None or not math.isfinite(f) for f in figures):
            self._refuse(trial, f"has no {self.objectives[0].name}: it is not finite")
        kept = tuple(float(f) for f in figures if f is not None)
        return kept if len(kept) > 1 else kept[0]

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        pipeline = trial.suggest_categorical("pipeline", list(self.plan.pipelines))
        out: dict[str, Any] = {"pipeline": pipeline}
        for name, of in distributions(self.plan, str(pipeline)).items():
            if isinstance(of, CategoricalDistribution):
                out[name] = trial.suggest_categorical(name, of.choices)
            elif isinstance(of, IntDistribution):
                out[name] = trial.suggest_int(name, of.low, of.high, log=of.log)
            elif isinstance(of, FloatDistribution):
                out[name] = trial.suggest_float(name, of.low, of.high, log=of.log)
        return out

    def _refuse_what_cannot_fit(self, trial: Trial, steps: Sequence[ChainStep]) -> None:
        """Cost of the structure alone, before any training."""
        costs = [limit for limit in self.limits if limit.name in _STRUCTURAL]
        if not costs:
            return
        spent = random_cost(self.plan.base, steps)
        trial.set_user_attr("random_cost", spent)
        for limit in costs:
            value = spent[limit.name]
            slack = _SLACK if limit.name in _TIMED else 1.0
            if limit.most and value > limit.bound * slack:
                for each in self.limits:
                    trial.set_constraint(each.text, each.excess(spent[each.name]) if each.name in spent else 0.0)
                self._refuse(trial, f"cannot fit {limit.text}: its structure has {value:.4g}")

    def _price(self, trial: Trial, steps: Sequence[ChainStep]) -> None:
        """Pay a probe, predict the figure, and prune where even the better end is worse than the best that fits."""
        trained = [s for s in steps if isinstance(s.values.get("train"), Mapping) and "steps" in s.values["train"]]
        if not trained or not self.plan.probe or len(self.objectives) > 1:
            return
        name, objective = self.objectives[0].name, self.objectives[0]
        probe = self._made(trial, steps, self.plan.probe).values.get(name)
        if probe is None:
            return
        trial.set_user_attr("probe", probe)
        done = [t for t in self.study.get_trials(deepcopy=False) if {"probe", "values"} <= set(t.user_attrs)]
        price = predict([t.user_attrs["probe"] for t in done], [t.user_attrs["values"][name] for t in done], probe)
        fitting = [f.values[name] for f in self.found() if f.fits]
        best = [v for v in fitting if v is not None]
        if price is None or not best:
            return
        trial.set_user_attr("price", [price.low, price.value, price.high])
        top = max(best) if objective.sense == "maximise" else min(best)
        hope = price.high if objective.sense == "maximise" else price.low
        if objective.better(top, hope):
            self._refuse(trial, f"priced at {name} {price.value:.4g} [{price.low:.4g}, {price.high:.4g}]: not the best")

    def _made(self, trial: Trial, steps: Sequence[ChainStep], share: float) -> Candidate:
        made = self.workshop.make(steps, share)
        if made.failed:
            self._refuse(trial, f"failed: {made.failed}")
        return made

    def _refuse(self, trial: Trial, why: str) -> NoReturn:
        trial.set_user_attr("refused", f"trial {trial.number}: {why}")
        self.session.say(f"  {why}")
        raise optuna.TrialPruned(why)


_TIMED = ("ms_per_token", "prefill_ms")
_STRUCTURAL = ("bytes", "parameters", "memory_bytes", *_TIMED)


def _found(trial: FrozenTrial, limits: Sequence[Limit]) -> FoundTrial:
    a = trial.user_attrs
    return FoundTrial(trial.number, a["knobs"], a["model"], a["values"], excess(limits, a["values"]), a["seconds"])


def chosen(found: Sequence[FoundTrial], objective: SearchGoal, runners_up: int = 3) -> list[FoundTrial]:
    """Order candidates: those that fit by the objective, else by how near they are to fitting; the best first.

    Candidates of equal content stand once.

    Args:
        found: made and measured.
        objective: what is made best.
        runners_up: kept beside the first.
    """
    once = {f.model: f for f in found}
    sign = -1.0 if objective.sense == "maximise" else 1.0

    def key(f: FoundTrial) -> tuple[bool, float, float]:
        value = f.values.get(objective.name)
        return (not f.fits, f.worst, math.inf if value is None else sign * value)

    return sorted(once.values(), key=key)[: 1 + runners_up]


def default_storage(folder: Path) -> str:
    """Return the address of an SQLite file within the search's folder."""
    return f"sqlite:///{folder / 'search.db'}"
