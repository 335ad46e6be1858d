"""Which backbones read the cohort of a probe, and which patients each of them may test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.backbones.shipped import NETWORKS, SCHEME, is_box, sight_of
from pipelines.cohort.folder import Cohort
from pipelines.encoders.source import Source
from probes.splits import is_held_out
from transforms.refusal import Refusal, number_of

S_co = TypeVar("S_co", bound=Source, covariant=True)
S = TypeVar("S", bound=Source)


class ProbeError(Refusal):
    """The probe is not possible with this backbone and this cohort."""


@dataclass(frozen=True, slots=True)
class Reader(Generic[S_co]):
    """An origin of features with the patients that it is tested on, and the leak tag of that test."""

    loaded: S_co
    tested: set[str]
    leak: str


def open_backbones(named: str, image_px: int | None = None) -> list[LoadedBackbone]:
    """Open the backbones of the option `backbone`: of `shipped:NAME` its three networks.

    Args:
        named: Names with commas between; "": the newest finished pretrain run.
        image_px: As in `open_backbone`.

    Raises:
        ProbeError: If several have different input sizes.
        BackboneError: If one cannot be opened.
    """
    names = [name.strip() for name in named.split(",")]
    if is_box(named):
        names = [f"{named}/{network}" for network in NETWORKS]
    backbones = [open_backbone(chosen_backbone(name), image_px) for name in names]
    sizes = {loaded.backbone.image_px for loaded in backbones}
    if len(sizes) > 1:
        raise ProbeError(f"cross-fitted backbones must have the same input size, got {sorted(sizes)} px")
    depths = {loaded.backbone.image_depth_px for loaded in backbones}
    if len(depths) > 1:
        raise ProbeError(
            f"cross-fitted backbones must read alike; these read cubes of {sorted(depths)} voxels along z (0: slices)"
        )
    return backbones


def readers_of(
    named: str,
    backbones: Sequence[S],
    cohort: Cohort,
    patient_ids: NDArray[np.str_],
    leak: Literal["avoid", "allow"],
) -> list[Reader[S]]:
    """Divide patients among the backbones that may test them.

    Of `shipped:NAME`, `all` reads patients that none was trained on, and each half those that only the others were.

    Args:
        named: The option `backbone`.
        backbones: As `open_backbones` returns them.
        cohort: Of the patients.
        patient_ids: Of each nodule, (n,).
        leak: `allow`: every backbone tests everyone; of `shipped:NAME`, `all` does.

    Raises:
        ProbeError: If all networks of `shipped:NAME` saw a patient.
    """
    if not is_box(named):
        return [reader_of(loaded, cohort, patient_ids, leak) for loaded in backbones]
    if leak == "allow":
        return [reader_of(backbones[0], cohort, patient_ids, leak)]
    sight = sight_of(cohort, set(patient_ids.tolist()), [loaded.record["trained_on"] for loaded in backbones])
    left, readers = set(sight.by_patient), []
    for number, loaded in enumerate(backbones):
        own = left & sight.unseen(number)
        left -= own
        if own:
            print(f"{loaded.source} reads {number_of(len(own), 'patient')} that it never saw")
            readers.append(Reader(loaded, own, "unknown" if own & sight.unknown else ""))
    if left:
        raise ProbeError(
            f"all networks of {named} were trained on {len(left)} of {len(sight.by_patient)} patients of cohort"
            f" {cohort.root}; take other patients or, with a tag that says so, leak=allow"
        )
    return readers


def reader_of(
    loaded: S, cohort: Cohort, patient_ids: NDArray[np.str_], leak: Literal["avoid", "allow"]
) -> Reader[S]:
    """Return one backbone with the patients of a cohort that it may be tested on."""
    if not loaded.source.startswith(SCHEME):
        return Reader(loaded, *patients_to_test(loaded, patient_ids, leak))
    everyone = set(patient_ids.tolist())
    sight = sight_of(cohort, everyone, [loaded.record["trained_on"]])
    unseen = sight.unseen(0)
    tested = unseen if unseen and leak == "avoid" else everyone
    if tested != unseen:
        return Reader(loaded, tested, "allowed" if leak == "allow" else "no_holdout")
    return Reader(loaded, tested, "unknown" if sight.unknown else "")


def unseen_patients(loaded: Source, patient_ids: NDArray[np.str_]) -> set[str] | None:
    """Return the patients that the backbone did not see; None when this is unknown."""
    everyone = {str(patient) for patient in patient_ids}
    if loaded.source.startswith("timm:"):
        return everyone
    if "holdout" not in loaded.record:
        return None
    if loaded.record.get("leak"):
        return set()
    return {patient for patient in everyone if is_held_out(patient, loaded.record["holdout"])}


def patients_to_test(
    loaded: Source, patient_ids: NDArray[np.str_], leak: Literal["avoid", "allow"]
) -> tuple[set[str], str]:
    """Return the patients to test on, those that the backbone did not see if this is known, and the leak tag."""
    everyone = {str(patient) for patient in patient_ids}
    unseen = unseen_patients(loaded, patient_ids)
    before = "unknown" if loaded.record.get("first_weights") == "unknown" else ""
    if leak == "allow":
        return everyone, before if unseen == everyone else "allowed"
    if unseen is None:
        return everyone, "unknown"
    return (unseen, before) if unseen else (everyone, "no_holdout")
