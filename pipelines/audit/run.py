"""Body of `audit`: a probe of each encoder on one cohort, and one page of all."""

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase

import pandas as pd

from pipelines.audit import AuditConfig
from pipelines.audit.measures import (
    Audited,
    few_shots,
    kernel_distance,
    pairs,
    probe_config,
    read_from,
    scores_of,
    short,
)
from pipelines.audit.page import forest, page
from pipelines.figures.scores import counted, few_shot_figure
from pipelines.probing.malignancy import probe
from pipelines.probing.readers import ProbeError
from pipelines.probing.reading import open_sources
from pipelines.probing.setup import open_cohort
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.page import Picture, markdown, page_html
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run, SilentRun


class _Tags(SilentRun):
    """Keeps the tags of a probe, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}

    def set_tags(self, tags: Mapping[Tag, str]) -> None:
        """Keep tags, several leaks beside each other."""
        for tag, value in tags.items():
            before = self.tags.get(tag, "")
            is_more = tag == Tag.LEAK and before and before != value
            self.tags[tag] = f"{before}; {value}" if is_more else value


def run_audit(config: AuditConfig, run: Run) -> None:
    """Probe every encoder, compare them, write the page, and log page, tables and figures.

    Raises:
        ProbeError: If there are more encoders than letters, or one is named twice.
        Refusal: If one cannot be opened or probed; nothing is computed before all are open.
    """
    named = [name.strip() for name in config.encoders.split(",")]
    if len(named) > len(ascii_uppercase) or len(set(named)) < len(named):
        raise ProbeError(
            f"encoders names {len(named)}, one of them twice or more than {len(ascii_uppercase)}"
        )
    configs = [probe_config(config, name) for name in named]
    cohort = open_cohort(configs[0])
    opened = [open_sources(own) for own in configs]
    audited: list[Audited] = []
    for letter, own, sources in zip(ascii_uppercase, configs, opened, strict=False):
        names = ", ".join(short(one.source) for one in sources)
        print(f"\n{letter}: {names}")
        tags = _Tags()
        probed = probe(own, tags, cohort, sources)
        cubes = probed.frozen[0].cubes
        n_flat = 0 if cubes is None else int(cubes.is_flat().sum())
        note = f"no z: center slice repeated for {n_flat} of {len(probed.nodules.labels)}" if n_flat else ""
        shots = few_shots(config, probed)
        audited.append(Audited(letter, short(named[len(audited)]), own, probed, tags.tags, shots, note))
    compared = pairs(config, audited)
    scanners = {one.letter: read_from(config, cohort, one) for one in audited}
    kernels = {
        one.letter: kernel_distance(
            cohort, one.config, one.probed.frozen[0].loaded, set(scores_of(one)["patient"])
        )
        for one in audited
    }
    nodules = max((one.probed.nodules for one in audited), key=lambda own: len(own.labels))
    facts = (
        f"{counted(nodules.labels, nodules.patient_ids)}, {cohort.kind}; rule {config.rule}; {config.repeats} x"
        f" {config.folds} patient folds, seed {config.seed}; cohort {cohort.sha256[:12]}."
    )
    blocks = page(audited, compared, scanners, kernels, facts)
    shots = pd.concat([one.shots.assign(row=one.letter) for one in audited])
    if len(shots):
        blocks.append(Picture("Few-shot AUROC", few_shot_figure(shots, "all other patients")))
    _write(config, run, markdown(blocks), page_html(blocks))
    counts = {"kind": cohort.kind, "volumes": len(cohort.series), "nodules": len(cohort.nodules)}
    run.log_dataset(cohort.root.name, cohort.sha256, counts, "evaluation")
    run.set_tags({Tag.COHORT_SHA: cohort.sha256, Tag.COHORT_KIND: cohort.kind, Tag.PROBED: ",".join(named)})
    leaks = [f"{one.letter}: {one.tags[Tag.LEAK]}" for one in audited if Tag.LEAK in one.tags]
    run.set_tags({Tag.LEAK: "; ".join(leaks)} if leaks else {})
    for number, one in enumerate(audited):
        run.log_metrics(_metrics(one), step=number)
        run.log_table(one.probed.table, f"tables/{one.letter}_probe.csv")
    run.log_table(compared, "tables/pairs.csv")
    run.log_table(
        pd.concat([table.assign(encoder=letter) for letter, table in scanners.items()]), "tables/read.csv"
    )
    run.log_figure(forest(audited), "figures/audit.png")


def _write(config: AuditConfig, run: Run, text: str, html: str) -> None:
    make_folder(Path(config.out))
    for name, content in (("audit.md", text), ("audit.html", html)):
        run.log_text(content, name)
        write_atomically(Path(config.out) / name, lambda file, content=content: file.write(content.encode()))  # type: ignore[misc]
    print(text)
    print(f"page: {Path(config.out) / 'audit.html'}")


def _metrics(one: Audited) -> dict[str, float]:
    found = {
        f"audit/{name}": one.row()[name] for name in ("auroc", "auroc_ci_low", "auroc_ci_high") if one.row()
    }
    if one.row("features_and_diameter"):
        found["audit/gain_over_diameter"] = one.row("features_and_diameter")["minus_diameter"]
    answer = one.probed.answer
    if answer is not None:
        found |= {"audit/nested_z": answer.rows["features"].z, "audit/nested_p": answer.rows["features"].p}
        if answer.over_random_r2 is not None:
            found |= answer.over_random_r2.named("audit/over_random_r2")
    return found
