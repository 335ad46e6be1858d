"""Arms proposed by a language model behind any OpenAI-compatible endpoint.

The model sees the question, the space with each key's default, and the results so far. Its answer is untrusted
text: it is parsed as JSON, checked key by key against the space, and used for nothing else.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipelines.campaign.proposers.base import Outcome, Proposal, ProposalError, inside_space
from pipelines.campaign.spec import CampaignError, CampaignSpec

URL_ENV, KEY_ENV, MODEL_ENV = "DINOX_LLM_URL", "DINOX_LLM_KEY", "DINOX_LLM_MODEL"
_TIMEOUT_S = 120.0
_MOST_BYTES = 1_000_000
_HYPOTHESIS_LENGTH = 500
_NO_JSON = (ValueError, RecursionError)
"""Errors of `json.loads` for invalid text, also for numbers with too many digits and too deep nesting."""
_INSTRUCTIONS = """You plan experiments. Propose the single next arm of this campaign.
Answer with one JSON object and nothing else: {"hypothesis": "one sentence", "overrides": {"key": value, ...}}.
Use only keys of the space, with values inside it. Answer {"stop": true} when nothing more is worth trying."""


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
        if os.environ.get(KEY_ENV):
            headers["Authorization"] = f"Bearer {os.environ[KEY_ENV]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                received = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or getattr(error, "code", None) or type(error).__name__
            raise ProposalError(f"the endpoint did not answer: {reason}") from error
        try:
            content = json.loads(received)["choices"][0]["message"]["content"]
        except (*_NO_JSON, KeyError, IndexError, TypeError) as error:
            raise ProposalError("the endpoint's answer is not a chat completion") from error
        if not isinstance(content, str):
            raise ProposalError("the endpoint's answer holds no text")
        return content.strip()
