"""JSON schemas of the files that users write; editors use them to complete, explain and check keys.

Run: python -m pipelines.command.schema
"""

import json
from pkgutil import resolve_name
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from pipelines.command.config import adapter
from pipelines.runtime.atomic import write_text
from pipelines.runtime.paths import PROJECT_ROOT

SCHEMAS = {
    "recipe": "pipelines.pretrain:PretrainConfig",
    "campaign": "pipelines.campaign.spec:CampaignSpec",
}
"""Kind of file -> its configuration class; its schema is `mlflow_projects/<kind>.schema.json`."""


class _WithoutTitles(GenerateJsonSchema):
    """No titles: they would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_text(kind: str) -> str:
    """Return the JSON schema of a kind of file."""
    tree = adapter(resolve_name(SCHEMAS[kind])).json_schema(schema_generator=_WithoutTitles)
    return json.dumps({"$schema": _WithoutTitles.schema_dialect} | tree, indent=1) + "\n"


if __name__ == "__main__":
    for one in SCHEMAS:
        file = PROJECT_ROOT / "mlflow_projects" / f"{one}.schema.json"
        write_text(file, schema_text(one))
