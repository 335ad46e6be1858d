"""Refusals for figures that cannot be computed from the samples: a caller may leave the figure out and report why."""

from transforms.refusal import Refusal


class UnmeasurableError(Refusal):
    """Samples that do not allow a figure: numbers not finite, all features equal, no mark of a reader."""


class TooFewError(UnmeasurableError):
    """Too few samples, patients or classes for a figure."""
