"""Read a design: variants, regimes and seeds, and the cells they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finemem_lib.experiments.cells import Cell, FrozenModel
from finemem_lib.util.yaml_files import read_yaml


class Design(FrozenModel):
    """A grid: every variant in every regime at every seed.

    Attributes:
        description: one sentence, shown with the results.
        baseline: the variant that the others are compared with, within each regime.
        common: settings of all cells, fields of `cells.Cell`.
        regimes: by name, settings that replace common ones.
        variants: by name, settings that replace those of the regime.
        seeds: one training run for each.
    """

    description: str
    baseline: str
    common: dict[str, Any] = {}
    regimes: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    seeds: list[int]

    @property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed.

        Raises:
            ValueError: a setting is unknown or out of range.
        """
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
    """Read a design and check all its cells.

    Args:
        path: a YAML file with the fields of `Design`.

    Raises:
        ValueError: the file is missing or no YAML, or a name or a value in it is not usable.
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
    """Return what pydantic refused in a design: where, what it got, what it expects."""
    known = (Design if error.title == "Design" else Cell).model_fields
    found = []
    for one in error.errors(include_url=False):
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            found.append(f"{name} is no field, expected one of {', '.join(known)}")
        elif one["type"] == "value_error":
            found.append(str(one["ctx"]["error"]))
        else:
            found.append(f"{name} is {one['input']!r}: {one['msg']}" if name else one["msg"])
    return "; ".join(found)
