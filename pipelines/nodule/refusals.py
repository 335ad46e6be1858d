"""Refusals of nodules, in a module that does not need MONAI."""

from transforms.refusal import Refusal


class NoNodulesError(Refusal):
    """A cohort, a rule and a crop that leave no labeled nodule."""
