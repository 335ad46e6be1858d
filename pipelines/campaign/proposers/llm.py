"""Arms proposed by a language model behind any OpenAI-compatible endpoint.

The model sees the question, the space with each key's default, and the results so far. Its answer is untrusted
text: it is parsed as JSON, checked key by key against the space, and used for nothing else.
"""

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipelines.campaign.proposers.base import Outcome, Proposal, ProposalError, inside_space
from pipelines.campaign.spec import CampaignError, CampaignSpec

URL_ENV, KEY_ENV, MODEL_ENV = "DINOX_LLM_URL", "DINOX_LLM_KEY", "DINOX_LLM_MODEL"
TIMEOUT_S = 120.0
"""Of a whole answer; `_SILENT_S` of each part of it."""
_SILENT_S = 60.0
_MOST_BYTES = 1_000_000
_HYPOTHESIS_LENGTH = 500
_NO_JSON = (ValueError, RecursionError)
"""Errors of `json.loads` for invalid text, also for numbers with too many digits and too deep nesting."""
_INSTRUCTIONS = """You plan experiments. Propose the single next arm of this campaign.
Answer with one JSON object and nothing else: {"hypothesis": "one sentence", "overrides": {"key": value, ...}}.
Use only keys of the space, with values inside it. Answer {"stop": true} when nothing more is worth trying."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address would get the key."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _received(request: urllib.request.Request, into: "queue.Queue[bytes | str]") -> None:
    """Put the answer into a queue, or why there is none; without a word of the request, which holds the key."""
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_SILENT_S) as response:
            into.put(response.read(_MOST_BYTES))
    except Exception as error:  # An endpoint may answer anything, and urllib raises of many kinds about it.
        reason = getattr(error, "code", None) or getattr(error, "reason", None)
        into.put(str(http.client.responses.get(reason, reason) if reason else type(error).__name__)[:100])


class LlmProposer:
    """Asks `DINOX_LLM_URL` (such as https://host/v1) for the next arm."""

    def __init__(self, spec: CampaignSpec) -> None:
        """Read the endpoint from the environment.

        Raises:
            CampaignError: If it is not given.
        """
        missing = [name for name in (URL_ENV, MODEL_ENV) if not os.environ.get(name)]
        if missing:
            raise CampaignError(
                f"proposer llm needs {' and '.join(missing)} in the environment (and {KEY_ENV} if the endpoint needs"
                " a key)"
            )
        self.url = os.environ[URL_ENV].rstrip("/") + "/chat/completions"
        if not self.url.startswith(("http://", "https://")):
            raise CampaignError(f"{URL_ENV} must be an http or https address")
        self.key = os.environ.get(KEY_ENV, "").strip()
        if not all("!" <= letter <= "~" for letter in self.key):
            raise CampaignError(f"{KEY_ENV} holds a blank or a letter that no key has; set it again")
        self.spec = spec

    def propose(self, outcomes: Sequence[Outcome]) -> Proposal | None:
        """Ask for the next arm.

        Raises:
            ProposalError: If there is no answer, or it is not an arm of the space.
        """
        answer = self._answer(json.dumps(self._situation(outcomes)))
        try:
            tree = json.loads(answer)
        except _NO_JSON as error:
            raise ProposalError(f"the answer is not JSON: {answer!r:.120}") from error
        if not isinstance(tree, dict):
            raise ProposalError(f"the answer is a JSON {type(tree).__name__}, not an object")
        if tree.get("stop") is True:
            return None
        unknown = sorted(set(tree) - {"hypothesis", "overrides"})
        if unknown:
            raise ProposalError(f"the answer holds {unknown[0]!r:.80}, which a proposal may not set")
        overrides, hypothesis = tree.get("overrides"), tree.get("hypothesis")
        if not isinstance(overrides, dict) or not isinstance(hypothesis, str):
            raise ProposalError("the answer lacks an object 'overrides' or a text 'hypothesis'")
        plain = " ".join("".join(c if c.isprintable() else " " for c in hypothesis).split())
        return Proposal(inside_space(self.spec.proposer, overrides), plain[:_HYPOTHESIS_LENGTH])

    def to_prune(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Stop no running arm; each has its own verdict."""
        return []

    def _situation(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        return {
            "question": self.spec.question,
            "endpoint": {"metric": self.spec.endpoint.metric, "goal": self.spec.endpoint.goal},
            "space": self.spec.proposer.space,
            "arms_left": self.spec.proposer.max_arms - len(outcomes),
            "results": [
                {
                    "overrides": dict(o.overrides),
                    "hypothesis": o.hypothesis,
                    "state": o.state,
                    "value": o.value,
                }
                for o in outcomes
            ],
        }

    def _answer(self, situation: str) -> str:
        body = {
            "model": os.environ[MODEL_ENV],
            "messages": [
                {"role": "system", "content": _INSTRUCTIONS},
                {"role": "user", "content": situation},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        answer: queue.Queue[bytes | str] = queue.Queue()
        # A thread of its own: an endpoint that sends a byte a minute keeps it, and not the campaign.
        threading.Thread(target=_received, args=(request, answer), name="endpoint", daemon=True).start()
        try:
            received = answer.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise ProposalError(f"the endpoint did not answer within {TIMEOUT_S:g} s") from None
        if isinstance(received, str):
            raise ProposalError(f"the endpoint did not answer: {received}")
        try:
            content = json.loads(received)["choices"][0]["message"]["content"]
        except (*_NO_JSON, KeyError, IndexError, TypeError) as error:
            raise ProposalError("the endpoint's answer is not a chat completion") from error
        if not isinstance(content, str):
            raise ProposalError("the endpoint's answer holds no text")
        return content.strip()
