"""Which ids are stored as they are: public ones and those that stand for a patient already, and no other."""

import pytest

from pipelines.cohort.pseudonyms import Pseudonyms

OURS = "anon-" + "0123456789ab" * 2


def pseudonyms() -> Pseudonyms:
    return Pseudonyms(frozenset({"PHANTOM-0001"}), key=b"k" * 64)


def test_an_id_that_stands_for_a_patient_already_stays() -> None:
    assert pseudonyms().patient(OURS, "1.2") == OURS


@pytest.mark.parametrize(
    "patient_id",
    ["anon-Quill", "anon-", OURS[:-1], OURS + "0", OURS.upper(), f"x{OURS}", f"{OURS}\n", f"{OURS} Isolde"],
)
def test_an_id_that_only_begins_like_one_is_replaced(patient_id: str) -> None:
    found = pseudonyms().patient(patient_id, "1.2")
    assert found != patient_id
    assert len(found) == len(OURS)


def test_public_ids_stay_whole_and_not_by_their_beginning() -> None:
    assert pseudonyms().patient("PHANTOM-0001", "1.2") == "PHANTOM-0001"
    assert pseudonyms().patient("PHANTOM-00011", "1.2").startswith("anon-")
    assert pseudonyms().name("PHANTOM-0001") == "PHANTOM-0001"
    assert pseudonyms().name("PHANTOM-0001 Quill").startswith("name-")


def test_a_study_and_a_patient_of_one_text_are_two_people() -> None:
    assert pseudonyms().patient("1.2.3", "9") != pseudonyms().patient("", "1.2.3")


def test_a_phantoms_patient_has_one_id_under_all_keys_and_a_real_one_has_not() -> None:
    users = [Pseudonyms(key=key * 64, drawn=frozenset({"MRN-5520417-QF"})) for key in (b"k", b"l")]
    drawn = {user.patient("MRN-5520417-QF", "1.2", series) for user in users for series in ("1.2.8", "1.2.9")}
    assert len(drawn) == 1
    assert len({user.key_of("MRN-5520417-QF", *drawn) for user in users} - {""}) == 1
    assert len({user.patient("MRN-2", "1.2", "1.2.8") for user in users}) == 2
    assert users[0].key_of("MRN-2", *drawn) == ""
