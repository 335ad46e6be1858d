"""A store on a server that asks for a password, proxies artifacts, and is away in the middle of each command."""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.campaign import run as campaign
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.tracking.arms import read_arms
from pipelines.tracking.run import Run
from pipelines.training.trainer import Trainer
from tests.pipelines.finetuning.test_finetune import OPTIONS
from tests.pipelines.training.compared import QUICK
from tests.pipelines.training.test_killed import Server
from tests.processes import OpenProcess

pytestmark = pytest.mark.slow
AWAY_S = 4.0
USER, PASSWORD = "admin", "a long password /@"


@pytest.fixture
def server(own_store: Path, open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """MLflow's server with basic auth, and this process with the password."""
    if importlib.util.find_spec("flask_wtf") is None:
        pytest.skip("mlflow[auth] is not installed")
    (own_store / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{own_store / 'auth.db'}\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "auth_cache_ttl_seconds = 600\n"  # To hash a password takes a second, at every request.
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    words = ["--app-name", "basic-auth"]
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(own_store / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "k"}
    served = Server(open_process, own_store, words, **secrets)
    served.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.setattr(campaign, "JOBS", own_store / "jobs")
    yield served
    served.stop()


def given(command: str, **options: object) -> int:
    one = ENTRY_POINTS[command]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return run_entry_point(one.name, one.load_schema(), one.run, one.recipe, words)


def away_at(patch: pytest.MonkeyPatch, server: Server, owner: type, name: str, call: int = 1) -> None:
    """Stop the server before the given call of a method, and start it again some seconds later."""
    whole: Callable[..., object] = getattr(owner, name)
    calls = []

    def disturbed(*given: object, **named: object) -> object:
        calls.append(name)
        if len(calls) == call:
            server.stop()
            threading.Timer(AWAY_S, server.start).start()
        return whole(*given, **named)

    patch.setattr(owner, name, disturbed)


def test_every_command_gets_through_to_a_server_with_a_password_that_is_away_in_between(
    server: Server, own_store: Path, small_cohort: Cohort, grained_cohort: Cohort, capsys
) -> None:
    with pytest.MonkeyPatch.context() as stranger:
        stranger.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert given("rehearsal") == 2
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().err

    runs = {"runs_dir": own_store / "runs"}
    with pytest.MonkeyPatch.context() as patch:
        away_at(patch, server, Trainer, "update", call=3)
        code = given("pretrain", **QUICK | runs | {"cohort": small_cohort.root})
    said = capsys.readouterr()
    assert code in (0, 2), said.err
    if code:  # It was still away at the end.
        server_is_back(server)
        assert given("pretrain", **QUICK | runs | {"cohort": small_cohort.root, "resume": "auto"}) == 0
    store = MlflowClient(server.address)
    (trained,) = store.search_runs(["0"], "tags.`dinox.backbone` = 'yes'")
    assert trained.info.status == "FINISHED"
    assert trained.info.artifact_uri.startswith("mlflow-artifacts:")

    backbone = f"runs:/{trained.info.run_id}/backbone"
    probe = OPTIONS | runs | {"cohort": grained_cohort.root, "backbone": backbone, "leak": "allow"}
    for command, options, owner, name in (
        ("probe_malignancy", probe, Run, "log_table"),
        ("report", {"out": own_store / "report.md"}, Run, "log_text"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            away_at(patch, server, owner, name, call=2)
            code = given(command, **options)
        assert code in (0, 2), capsys.readouterr().err
        if code:  # The server took longer to start than is waited for.
            server_is_back(server)
            assert given(command, **options) == 0
        server_is_back(server)
        (done, *_) = store.search_runs(["0"], f"tags.`dinox.entry_point` = '{command}'")
        assert done.info.status == "FINISHED"
    assert "Primary question" in (own_store / "report.md").read_text()

    tree = {
        "name": "served",
        "question": "Does it work?",
        "endpoint": {"metric": "loss/total", "goal": "minimize"},
    }
    tree |= {
        "stages": {"rehearsal": {"steps": 8, "seconds": 20.0}},
        "price_per_hour": 0.5,
        "budget": {"hours": 1.0},
    }
    tree |= {"arms": [{"name": "a"}, {"name": "b", "overrides": {"lr": 0.1}}]}
    (own_store / "campaign.yaml").write_text(yaml.safe_dump(tree))
    with pytest.MonkeyPatch.context() as patch:
        away_at(patch, server, campaign.CampaignLoop, "_turn", call=8)
        assert given("campaign", spec=own_store / "campaign.yaml", parallel=2) == 0
    # A rehearsal keeps no records while the store is away: such an arm is tried again.
    assert {arm.name: arm.status for arm in read_arms()} == {"a": "FINISHED", "b": "FINISHED"}
    assert PASSWORD not in "".join(capsys.readouterr())


def server_is_back(server: Server) -> None:
    """Wait until the server answers with its runs."""
    for _ in range(600):
        try:
            MlflowClient(server.address).search_experiments()
            return
        except MlflowException:
            time.sleep(0.2)
    raise AssertionError("the server did not come back")
