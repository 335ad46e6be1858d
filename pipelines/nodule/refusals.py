"""Refusals of nodules, apart from what needs MONAI."""

from transforms.refusal import Refusal


class NoNodulesError(Refusal):
    """A cohort, a rule and a crop that leave no labeled nodule."""
