"""Rows in = rows out + rows left out, by reason: what is left out is always counted and printed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_REASONS = 5


@dataclass(frozen=True)
class Accounting:
    """What became of a number of rows, such as nodules, files or slices.

    Attributes:
        what: Name of the rows, plural.
        n_in: Rows that came in.
        kept_as: What the kept ones are: "tested", "read".
        n_kept: Rows that were kept.
        left_out: Reason -> rows.
    """

    what: str
    n_in: int
    kept_as: str
    n_kept: int
    left_out: Counter[str]

    def __post_init__(self) -> None:
        """End with RuntimeError where rows went missing: that is a bug, and no figure may be computed from them."""
        if self.n_in != self.n_kept + self.left_out.total():
            raise RuntimeError(
                f"{self.n_in} {self.what} came in, {self.n_kept} are {self.kept_as} and {self.left_out.total()} left "
                "out with a reason: the rest went missing"
            )

    @classmethod
    def of(cls, what: str, n_in: int, kept_as: str, n_kept: int, reasons: Iterable[str]) -> "Accounting":
        """Count the reasons, one for each row that was left out."""
        return cls(what, n_in, kept_as, n_kept, Counter(reasons))

    def __str__(self) -> str:
        """Render in one line, the most frequent reasons first."""
        line = f"{self.n_in} {self.what}: {self.n_kept} {self.kept_as}"
        if not self.left_out:
            return line
        common = self.left_out.most_common(_MOST_REASONS)
        parts = [f"{count} {reason}" for reason, count in common]
        if rest := len(self.left_out) - len(common):
            n_rest = self.left_out.total() - sum(count for _, count in common)
            parts.append(f"{n_rest} for {rest} other reasons")
        return f"{line}, {self.left_out.total()} left out: {'; '.join(parts)}"
