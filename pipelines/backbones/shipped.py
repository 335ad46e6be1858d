"""Weights that ship with the project: three networks of one recipe under each name in `models/weights`.

NAME/all        trained on every patient
NAME/half_a     trained with holdout=half_a: it never saw the patients of half_a, and reads them in a test
NAME/half_b     trained with holdout=half_b
NAME/README.md  the card
NAME/SHA256SUMS the files of the three networks, as `sha256sum -c` checks them
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.backbone import BackboneError
from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import Ids, compare, ids_of, joined
from pipelines.runtime.atomic import write_atomically
from pipelines.runtime.paths import RESOURCES

SCHEME = "shipped:"
HALVES = ("half_a", "half_b")
NETWORKS = ("all", *HALVES)
"""In the order in which they are asked to read a patient."""
BOXES = RESOURCES / "models" / "weights"
MOST_BYTES = 20_000_000
"""Of the weights under one name."""
SUMS = "SHA256SUMS"
_REMEDY = "fetch models/weights again, by git or by installing the project"


def is_box(name: str) -> bool:
    """Whether a backbone's name is `shipped:NAME`, all three networks; `shipped:NAME/half_a` is one of them."""
    return name.startswith(SCHEME) and "/" not in name


def shipped_folder(name: str) -> Path:
    """Return the folder of `shipped:NAME/NETWORK`, or of `shipped:NAME`, its network `all`.

    Raises:
        BackboneError: If no weights have that name, or a file of them is missing or was altered.
    """
    box, _, network = name.removeprefix(SCHEME).partition("/")
    names = sorted(path.name for path in BOXES.iterdir() if path.is_dir()) if BOXES.is_dir() else []
    if box not in names:
        raise BackboneError(f"no weights named '{box}' are shipped; there are: {', '.join(names) or 'none'}")
    if (network or "all") not in NETWORKS:
        raise BackboneError(f"{SCHEME}{box} holds {', '.join(NETWORKS)}, and no '{network}'")
    _check(box)
    return BOXES / box / (network or "all")


def _check(box: str) -> None:
    sums, there = BOXES / box / SUMS, _sums(BOXES / box)
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines() if sums.is_file() else []
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    needed = {SUMS} if not lines else {f"{network}/model.safetensors" for network in NETWORKS}
    for path in sorted(needed | listed.keys() | there.keys()):
        if path not in listed or there.get(path) != listed[path]:
            state = "was altered" if path in there and lines else "is missing"
            raise BackboneError(f"{SCHEME}{box}: {path} {state}; {_REMEDY}")


def _sums(folder: Path) -> dict[str, str]:
    files = [path for network in NETWORKS for path in sorted((folder / network).glob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def write_sums(folder: Path) -> None:
    """Write the hashes of the three networks in a folder."""
    text = "".join(f"{digest}  {path}\n" for path, digest in _sums(folder).items())
    write_atomically(folder / SUMS, lambda file: file.write(text.encode()))


@dataclass(frozen=True, slots=True)
class Sight:
    """Which networks saw which patients in their training.

    Attributes:
        by_patient: Of each patient, whether each network saw him.
        unknown: Patients whose ids cannot be compared with those that the networks were trained on; they count as not
            seen.
    """

    by_patient: Mapping[str, Sequence[bool]]
    unknown: frozenset[str]

    def unseen(self, network: int) -> set[str]:
        """Return the patients that a network did not see."""
        return {patient for patient, saw in self.by_patient.items() if not saw[network]}


def sight_of(cohort: Cohort, patients: Collection[str], trained: Sequence[Ids]) -> Sight:
    """Compare patients of a cohort with those that each network was trained on, by any id and by their volumes.

    The networks share one set of patients: once a patient is found in it, his ids are of a form that tells who saw him.
    """
    everyone = joined(*trained)
    found, unknown = {}, set()
    for patient in patients:
        own = ids_of(cohort, [patient])
        found[patient] = [compare(own, ids) == "shared" for ids in trained]
        if compare(own, everyone) == "unknown":
            unknown.add(patient)
    return Sight(found, frozenset(unknown))
