"""The content of a profile's file, for `finemem run` and for papermill's ``-f``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finemem_lib.runs.notebooks import Notebook
from finemem_lib.util.validation import problems_in_words


class ProfileFile(BaseModel):
    """The content of a profile.

    Attributes:
        description: Purpose of the profile.
        parameters: Values for every notebook that has the parameter.
        notebook_parameters: Values for single notebooks, by number or stem.
        requires: Parameters that the user must give.
        card: The graphics card it is made for, "" for none.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    description: str
    notebooks: list[str]
    parameters: dict[str, Any] = {}
    notebook_parameters: dict[str, dict[str, Any]] = {}
    requires: list[str] = []
    card: str = ""

    def values_for(self, notebook: Notebook, names: Collection[str]) -> dict[str, Any]:
        """Return a notebook's values; those in `notebook_parameters` take precedence.

        Args:
            notebook: The notebook.
            names: Names of its parameters.
        """
        own = [
            values for key, values in self.notebook_parameters.items() if notebook.answers_to(key)
        ]
        return {
            name: value
            for values in (self.parameters, *own)
            for name, value in values.items()
            if name in names
        }


def injected_profile(values: Mapping[str, Any]) -> ProfileFile | None:
    """Return the profile among values that papermill injected, `None` where there is none.

    ``papermill -f notebooks/profiles/default.yaml`` injects every key of the file as a parameter.

    Args:
        values: The injected values by name.

    Raises:
        ValueError: it is a profile, and one of its keys has another type.
    """
    required = {name for name, field in ProfileFile.model_fields.items() if field.is_required()}
    if not required <= {*values}:
        return None
    own = {name: value for name, value in values.items() if name in ProfileFile.model_fields}
    try:
        return ProfileFile.model_validate(own)
    except ValidationError as error:
        raise ValueError(
            f"the profile that papermill was given is not usable: {problems_in_words(error)}"
        ) from None
