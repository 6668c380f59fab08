"""Scripts outside the library, of `benchmarks/` and `release/`, as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from finemem_lib.util.provenance import workbench_root


def benchmark_module(name: str, folder: str = "benchmarks") -> ModuleType:
    """Return a script of `benchmarks/`, or of another folder of the repository, as a module."""
    path = workbench_root() / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
