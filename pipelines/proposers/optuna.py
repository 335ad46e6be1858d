"""Arms proposed by optuna: TPE over the space, successive halving on a metric of the running arms.

The study is built anew from the records each time it is asked, so nothing is lost with the campaign's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.campaign_spec import CampaignSpec
from pipelines.extras import load_extra
from pipelines.proposers import Outcome, Proposal


class OptunaProposer:
    """TPE and successive halving."""

    def __init__(self, spec: CampaignSpec) -> None:
        """Describe the space to optuna.

        Raises:
            ValueError: If optuna is not installed.
        """
        self.optuna = load_extra("optuna", "research")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.spec = spec
        self.space = {key: self._distribution(bounds) for key, bounds in spec.proposer.space.items()}

    def _distribution(self, bounds: dict[str, Any]) -> Any:
        distributions = self.optuna.distributions
        if "choices" in bounds:
            return distributions.CategoricalDistribution(bounds["choices"])
        low, high, log = bounds["low"], bounds["high"], bool(bounds.get("log"))
        if isinstance(low, int) and isinstance(high, int):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(low, high, log=log)

    def propose(self, outcomes: Sequence[Outcome]) -> Proposal | None:
        """Ask TPE for the next point."""
        study = self._study(outcomes)
        trial = study.ask(self.space)
        best = study.best_trials[0].value if any(o.value is not None for o in outcomes) else None
        why = "no result yet, a first guess" if best is None else f"TPE after a best of {best:.4g}"
        return Proposal({key: trial.params[key] for key in self.space}, why)

    def to_prune(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Ask successive halving about every arm that runs."""
        if not self.spec.proposer.prune_metric:
            return []
        study = self._study(outcomes)
        pruned = []
        for outcome, frozen in zip(outcomes, study.get_trials(deepcopy=False), strict=True):
            if outcome.state == "running" and outcome.curve:
                trial = self.optuna.trial.Trial(study, frozen._trial_id)
                if trial.should_prune():
                    pruned.append(outcome.name)
        return pruned

    def _study(self, outcomes: Sequence[Outcome]) -> Any:
        optuna, seed = self.optuna, self.spec.proposer.seed + len(outcomes)
        study = optuna.create_study(
            direction="maximize" if self.spec.endpoint.goal == "maximise" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
            pruner=optuna.pruners.SuccessiveHalvingPruner(),
        )
        for outcome in outcomes:
            study.add_trial(self._trial(outcome))
        return study

    def _trial(self, outcome: Outcome) -> Any:
        states = self.optuna.trial.TrialState
        now = datetime.now(UTC).replace(tzinfo=None)
        is_running = outcome.state == "running"
        state = (
            states.RUNNING if is_running else states.PRUNED if outcome.state == "pruned" else states.COMPLETE
        )
        if state is states.COMPLETE and outcome.value is None:
            state = states.FAIL
        trial = self.optuna.trial.create_trial(
            state=states.COMPLETE if outcome.value is not None else states.FAIL,
            value=outcome.value,
            params={key: outcome.overrides[key] for key in self.space},
            distributions=self.space,
            intermediate_values=dict(outcome.curve),
        )
        trial.state, trial.datetime_start = state, now
        trial.datetime_complete = None if is_running else now
        return trial
