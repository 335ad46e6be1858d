"""Names of earlier versions: metrics of older runs, keys and values of older recipes and command lines."""

from collections.abc import Mapping
from typing import Any

PARAMETER = "cfg."
"""Before each key of the configuration in the parameters of older runs, which hold all of it."""
METRICS = {
    "aggregation/centre": "aggregation/center",
    "representation/centred_": "representation/centered_",
    "representation/random_centred_": "representation/random_centered_",
}
"""Old prefix of a metric -> current prefix."""
KEYS = {"licence": "license"}
VALUES = {"features": {"neighbourhood": "neighborhood"}}
"""Key -> old value -> current value."""


def current_metric(name: str) -> str:
    """Return the current name of a metric."""
    for old, new in METRICS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def current_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the top level of a configuration with current keys and values."""
    return {KEYS.get(key, key): current_value(key, value) for key, value in tree.items()}


def current_value(key: str, value: Any) -> Any:
    """Return the current spelling of a value of a configuration key."""
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def current_params(params: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a run with current keys and values; of two spellings of a key, that of older runs."""
    flat = {
        name.removeprefix(PARAMETER): value for name, value in params.items() if name.startswith(PARAMETER)
    }
    own = {name: value for name, value in params.items() if not name.startswith(PARAMETER)}
    return own | current_keys(flat)
