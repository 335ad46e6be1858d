"""Addresses of MLflow's own pages."""

import json
from urllib.parse import quote


def compare_page(run_ids: list[str], experiment_id: str) -> str:
    """Return the address of MLflow's compare page on the server that `make ui` starts."""
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([experiment_id]))
    return f"http://127.0.0.1:5000/#/compare-runs?runs={runs}&experiments={experiments}"
