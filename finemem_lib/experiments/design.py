"""Read a design: variants, regimes and seeds, and the cells they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finemem_lib.experiments.cells import Cell, _Strict
from finemem_lib.util.yaml_files import read_yaml


class Design(_Strict):
    """A grid: every variant in every regime at every seed. `common` knobs hold in all cells, a
    regime's over them, a variant's over both. `baseline` is the variant that the others are
    compared with, within each regime."""

    description: str
    baseline: str
    common: dict[str, Any] = {}
    regimes: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    seeds: list[int]

    @property
    def cells(self) -> list[Cell]:
        return [
            Cell(
                **{
                    **self.common,
                    **regime,
                    **variant,
                    "variant": variant_name,
                    "regime": regime_name,
                    "seed": seed,
                }
            )
            for seed in self.seeds
            for regime_name, regime in self.regimes.items()
            for variant_name, variant in self.variants.items()
        ]


def load_design(path: Path) -> Design:
    """Read a design file and check all its cells.

    Raises:
        ValueError: it is missing, no YAML, or a name or a value in it is not usable.
    """
    try:
        design = Design.model_validate(read_yaml(path))
        design.cells  # noqa: B018 - a wrong knob is refused before anything runs
        if design.baseline not in design.variants:
            raise ValueError(f"baseline {design.baseline!r} is none of its variants")
    except ValueError as error:
        why = _in_words(error) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"design {path} is not usable: {why}; compare with those in notebooks/designs"
        ) from error
    return design


def _in_words(error: ValidationError) -> str:
    """Return what pydantic found wrong in a design: where, what it got, what it expects."""
    known = (Design if error.title == "Design" else Cell).model_fields
    found = []
    for one in error.errors(include_url=False):
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            found.append(f"{name} is no field, expected one of {', '.join(known)}")
        else:
            found.append(f"{name} is {one['input']!r}: {one['msg']}" if name else one["msg"])
    return "; ".join(found)
