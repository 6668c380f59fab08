"""The scripts of `benchmarks/` as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from finemem_lib.util.provenance import repository_root


def benchmark_module(name: str) -> ModuleType:
    """Return a script of `benchmarks/` as a module."""
    path = repository_root() / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
