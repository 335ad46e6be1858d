"""Make the plain `mlflow run . -e X` work in the installed environment.

Without an `--env-manager` flag MLflow builds a fresh environment through pyenv, and fails where pyenv is
missing; no environment variable changes that. MLflow loads this module early, as a run context provider, in every
process that imports its tracking client. For this project alone, and only when no `--env-manager` was given, it answers
"local" and puts the folder of the running interpreter first on PATH.

Two such commands at once may find no store: one after the other makes it. A project that MLflow fetches, from a git
address, lies in a folder of its own that is soon lost; it is told where it was called, and writes there.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT_NAME = "dinox-ct"
CALLED_ENV = "DINOX_CALLED_IN"
"""Folder in which `mlflow run` was called on a project that MLflow fetched."""
_BACKEND = "mlflow.projects.backend.local"
_ENV_MANAGER_KEY = "ENV_MANAGER"


class DinoxContext:
    """The context provider that MLflow loads: it adds no tags; its purpose is that this module is imported."""

    def in_context(self) -> bool:
        """Return False: there is nothing to tag."""
        return False

    def tags(self) -> dict[str, str]:
        """Return no tags."""
        return {}


def is_this_project(project_uri: str) -> bool:
    """Return whether a project URI is a local folder whose MLproject has this project's name."""
    recipe = Path(project_uri.removeprefix("file://")) / "MLproject"
    if not recipe.is_file():
        return False
    # Files of other projects may not be UTF-8.
    lines = recipe.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.split("#")[0].replace(" ", "") == f"name:{PROJECT_NAME}" for line in lines)


def make_store() -> None:
    """Make the tables of a store that is not there yet, while no other process does."""
    from pipelines.tracking.store import client, uri_of_mlflow
    from transforms.refusal import Refusal

    with contextlib.suppress(Refusal):  # MLflow itself says what is wrong with it.
        client(uri_of_mlflow())


def wrap_run(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `LocalBackend.run` so that this project runs in the installed environment by default."""

    @functools.wraps(run)
    def run_here(
        self: object,
        project_uri: str,
        entry_point: str,
        params: dict[str, str],
        version: str | None,
        backend_config: dict[str, Any],
        *rest: Any,
        **named: Any,
    ) -> Any:
        before = {name: os.environ.get(name) for name in ("PATH", CALLED_ENV)}
        if not Path(project_uri.removeprefix("file://").partition("#")[0]).is_dir():
            os.environ[CALLED_ENV] = os.getcwd()
        if is_this_project(project_uri):
            make_store()
            if backend_config.get(_ENV_MANAGER_KEY) is None:
                backend_config[_ENV_MANAGER_KEY] = "local"
                here = str(Path(sys.executable).parent)
                os.environ["PATH"] = os.pathsep.join([here, before["PATH"] or os.defpath])
        try:
            return run(self, project_uri, entry_point, params, version, backend_config, *rest, **named)
        finally:  # The calling process is not ours: its later children must find their own python.
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    return run_here


def _patch(module: ModuleType) -> None:
    # These names are private to MLflow. If one is gone, the plain command needs --env-manager; nothing else changes.
    backend: Any = getattr(module, "LocalBackend", None)
    if hasattr(backend, "run"):
        backend.run = wrap_run(backend.run)


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """Find the backend module once, let its own loader run it, then wrap `run`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _BACKEND:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                _patch(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


if hasattr(sys.modules.get(_BACKEND), "LocalBackend"):
    _patch(sys.modules[_BACKEND])
else:
    sys.meta_path.insert(0, _PatchOnImport())
