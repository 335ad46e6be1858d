"""Arms proposed by optuna: TPE over the space, successive halving on a metric of the running arms.

The study is rebuilt from the records at each call, so nothing is lost if the campaign's process ends.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.campaign.proposers.base import Outcome, Proposal
from pipelines.campaign.spec import CampaignSpec
from pipelines.runtime.extras import load_extra


class OptunaProposer:
    """TPE and successive halving."""

    def __init__(self, spec: CampaignSpec) -> None:
        """Describe the space to optuna.

        Raises:
            MissingPackageError: If optuna is not installed.
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
        """Halve the arms at each rung, in the order of their proposals (asynchronous successive halving)."""
        first_rung = self.spec.proposer.prune_from_step
        if not self.spec.proposer.prune_metric:
            return []
        pruner = self.optuna.pruners.SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=2)
        study = self.optuna.create_study(direction=self.spec.endpoint.goal, pruner=pruner)
        pruned = []
        for outcome in outcomes:
            trial = study.ask()
            for step, value in _at_rungs(outcome.curve, first_rung):
                trial.report(value, step)
                if trial.should_prune() and outcome.state == "running":
                    pruned.append(outcome.name)
                    break
        return pruned

    def _study(self, outcomes: Sequence[Outcome]) -> Any:
        optuna, seed = self.optuna, self.spec.proposer.seed + len(outcomes)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        study = optuna.create_study(direction=self.spec.endpoint.goal, sampler=sampler)
        states = optuna.trial.TrialState
        for outcome in outcomes:
            # An arm that runs or failed has no value, but its point should not be tried again.
            trial = optuna.trial.create_trial(
                state=states.FAIL if outcome.value is None else states.COMPLETE,
                value=outcome.value,
                params={key: outcome.overrides[key] for key in self.space},
                distributions=self.space,
            )
            study.add_trial(trial)
        return study


def _at_rungs(curve: Sequence[tuple[int, float]], first_rung: int) -> list[tuple[int, float]]:
    """Return the first point at or after each rung: first_rung, twice that, four times that ..."""
    points, rung = [], first_rung
    for step, value in curve:
        if step >= rung:
            points.append((step, value))
            while rung <= step:
                rung *= 2
    return points
