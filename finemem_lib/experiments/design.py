"""Read the design of an experiment: variants, regimes and seeds, and the resulting cells."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from finemem_lib.experiments.cells import Cell, FrozenModel
from finemem_lib.experiments.tables import ACCURACIES, PRIMARY
from finemem_lib.util.yaml_files import read_yaml


class Regime(FrozenModel):
    """A regime: settings, which are fields of `cells.Cell`, with its seeds and variants.

    Attributes:
        seeds: The seeds of this regime; `None` for those of the design.
        variants: Names of the variants in this regime; `None` for all.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    seeds: list[int] | None = None
    variants: list[str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the regime, which override the common settings."""
        return dict(self.model_extra or {})


class Design(FrozenModel):
    """A grid of variants, regimes and seeds, with the planned comparisons.

    Attributes:
        description: One sentence, shown with the results.
        baselines: The variants with which the others are compared, within each regime; a file may
            name a single one as ``baseline``.
        common: Settings of all cells, fields of `cells.Cell`.
        regimes: By name, settings that override the common ones, and optionally the regime's own
            seeds and variants.
        variants: By name, settings that override those of the regime.
        seeds: Seeds of the training runs.
        excluded_seeds: By reason, seeds that no regime may use (for example, of pilot runs).
        primary: The measures of the findings, names in `tables.ACCURACIES`.
        correction: Method of correcting p-values within a family of comparisons.
        family: Fields that define a family: comparisons with equal values belong together. Empty
            for a single family.
        pairs: The compared pairs of variants within a regime: "all", or those with a baseline.
        not_beaten: The criterion for "not beaten", in words.
        budget: The resources of a cell, in words, by kind.

    Raises:
        ValueError: a name or a value is not usable, or a seed is excluded.
    """

    description: str
    baselines: list[str] = Field(min_length=1)
    common: dict[str, Any] = {}
    regimes: dict[str, Regime]
    variants: dict[str, dict[str, Any]]
    seeds: list[int]
    excluded_seeds: dict[str, list[int]] = {}
    primary: list[str] = list(PRIMARY)
    correction: Literal["holm"] = "holm"
    family: list[Literal["measure", "regime"]] = ["measure"]
    pairs: Literal["all", "baselines"] = "all"
    not_beaten: str = ""
    budget: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_baseline(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or "baseline" not in fields:
            return fields
        return {"baselines": [fields["baseline"]]} | {
            name: value for name, value in fields.items() if name != "baseline"
        }

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        named = {
            "baseline": (self.baselines, list(self.variants)),
            "primary measure": (self.primary, list(ACCURACIES)),
            **{
                f"in regime {name!r} variant": (regime.variants or [], list(self.variants))
                for name, regime in self.regimes.items()
            },
        }
        for what, (names, known) in named.items():
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"{what} {unknown[0]!r} is not among {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _no_seed_is_excluded(self) -> Self:
        for reason, excluded in self.excluded_seeds.items():
            if found := sorted(set(self.all_seeds) & set(excluded)):
                raise ValueError(f"seed {found[0]} is excluded ({reason}); choose another one")
        return self

    @property
    def baseline(self) -> str:
        """The first of the baselines."""
        return self.baselines[0]

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the design and of its regimes, each once."""
        own = (regime.seeds or [] for regime in self.regimes.values())
        return list(dict.fromkeys([*self.seeds, *itertools.chain.from_iterable(own)]))

    def variants_in(self, regime: str) -> list[str]:
        """Return the names of the variants of a regime.

        Args:
            regime: Name of the regime.
        """
        named = self.regimes[regime].variants
        return list(self.variants) if named is None else named

    def seeds_in(self, regime: str) -> list[int]:
        """Return the seeds of a regime.

        Args:
            regime: Name of the regime.
        """
        own = self.regimes[regime].seeds
        return self.seeds if own is None else own

    @property
    def cells(self) -> list[Cell]:
        """All cells, ordered by seed, so that an unfinished experiment is balanced.

        Raises:
            ValueError: a setting is unknown or out of range.
        """
        return [
            Cell(
                **{
                    **self.common,
                    **regime.settings,
                    **self.variants[variant],
                    "variant": variant,
                    "regime": name,
                    "seed": seed,
                }
            )
            for seed in self.all_seeds
            for name, regime in self.regimes.items()
            if seed in self.seeds_in(name)
            for variant in self.variants_in(name)
        ]


def load_design(path: Path) -> Design:
    """Read a design and check all its cells.

    Args:
        path: A YAML file with the fields of `Design`.

    Raises:
        ValueError: the file is missing or not YAML, a name or a value in it is not usable, or it
            uses a seed that it excludes.
    """
    try:
        design = Design.model_validate(read_yaml(path))
        design.cells  # noqa: B018 - raises for a wrong setting before anything runs
    except ValueError as error:
        why = _in_words(error) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"design {path} is not usable: {why}; compare with those in notebooks/designs"
        ) from error
    return design


def _in_words(error: ValidationError) -> str:
    """Return pydantic's errors in a design as text: the field, its value and what is expected."""
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
