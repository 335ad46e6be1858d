"""Figures that a set of samples cannot give, as refusals: a caller may leave such a figure out, and says why."""

from transforms.refusal import Refusal


class UnmeasurableError(Refusal):
    """Samples that cannot give a figure: numbers that are not finite, features that are all equal, no reader's mark."""


class TooFewError(UnmeasurableError):
    """Too few samples, patients or classes for a figure."""
