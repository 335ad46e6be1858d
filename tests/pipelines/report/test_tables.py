"""Tables of the article: runs of the article's size and of a small study are told apart by their recipe."""

from pipelines.report.facts import gather
from pipelines.report.tables import article_table, load_article
from pipelines.tracking.reading import StoredRun


def arm(number: int, campaign: str, name: str, recipe: str) -> StoredRun:
    tags = {"dinox.entry_point": "pretrain", "dinox.cohort_sha": "s", "dinox.cohort_kind": "real CT"}
    tags |= {
        "dinox.campaign": campaign,
        "dinox.arm_of": name,
        "dinox.recipe": recipe,
        "dinox.status": "learning",
    }
    metrics = {"retrieval/top1": 0.1 * (number + 1)}
    return StoredRun(f"r{number}", "FINISHED", tags, metrics, {"seed": str(number)})


def test_arms_of_a_small_study_stand_beside_those_of_the_article_under_their_recipe() -> None:
    losses = next(table for table in load_article().tables if table.id == "losses")
    small = [arm(number, "real_small", f"dino-seed={number}", "real_small") for number in (1, 2)]
    runs = [arm(0, "article_loss", "dino", "vit_small"), *small]
    rows = [row for row in article_table(losses, gather(runs)).rows if row[0] == "DINO"]
    assert [(row[2], row[4], row[-1]) for row in rows] == [
        ("real CT, real_small", "0.25 (0.2 .. 0.3)", "2, 2"),
        ("real CT, vit_small", "0.1", "1, 1"),
    ]
