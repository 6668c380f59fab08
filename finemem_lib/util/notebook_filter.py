"""Git's clean filter for notebooks: remove changes that JupyterLab makes when one is only viewed.

`make hooks` and `make lab` configure the filter in git; `.gitattributes` refers to it. It reads a
notebook from standard input and writes it to standard output: ``python -m
finemem_lib.util.notebook_filter PATH``, where PATH is the notebook's path in the repository.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"
PICTURE = "image/png"


def clean(text: str, tracked: str = "") -> str:
    r"""Return a notebook without outputs and metadata that depend on its kernel.

    Widget views, widget state, execution timings, and a kernel's names and versions are removed. An
    unchanged figure gets back its picture, which executing its cell removed (`finemem pictures`).
    If nothing has to change, or the text is not a notebook, the text is returned unchanged.

    Args:
        text: The notebook as JSON.
        tracked: The notebook's version in git's index, or "".

    >>> view = '{"outputs": [{"data": {"application/vnd.jupyter.widget-view+json": {}}}]}'
    >>> clean(f'{{"cells": [{view}], "metadata": {{"widgets": {{}}}}}}')
    '{\n "cells": [\n  {\n   "outputs": []\n  }\n ],\n "metadata": {}\n}\n'
    """
    try:
        notebook, before = json.loads(text), json.loads(text)
        metadata = notebook["metadata"]
        metadata.pop("widgets", None)
        if "language_info" in metadata:
            metadata["language_info"] = {"name": metadata["language_info"]["name"]}
        if metadata.get("kernelspec", {}).get("name") == "python3":
            metadata["kernelspec"]["display_name"] = "Python 3"
        pictures = _pictures(tracked)
        for cell in notebook["cells"]:
            cell.get("metadata", {}).pop("execution", None)
            if "outputs" in cell:
                cell["outputs"] = [one for one in cell["outputs"] if not _is_live(one)]
        for figure, output in _figures(notebook):
            if figure in pictures and PICTURE not in output["data"]:
                picture, described = pictures[figure]
                output["data"] = dict(sorted({**output["data"], PICTURE: picture}.items()))
                output["metadata"] |= described
    except (ValueError, KeyError, TypeError, AttributeError):
        return text  # not a notebook, for example with conflict markers: leave it to its author
    return text if notebook == before else json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _is_live(output: dict[str, Any]) -> bool:
    """Return whether an output needs a kernel (`explorers.display.LIVE_ONLY` marks others)."""
    marked = output.get("metadata", {}).get("finemem") == "live"
    return marked or WIDGET_VIEW in output.get("data", {})


def _figures(notebook: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (figure as text, output) for every output with a figure."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if PLOTLY in output.get("data", {}):
                yield json.dumps(output["data"][PLOTLY], sort_keys=True), output


def _pictures(tracked: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the picture and its metadata for every figure in a notebook."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return {
            figure: (
                output["data"][PICTURE],
                {key: value for key, value in output["metadata"].items() if key == PICTURE},
            )
            for figure, output in _figures(json.loads(tracked))
            if PICTURE in output["data"]
        }
    return {}


def main() -> None:
    """Clean the notebook on standard input."""
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    asked = ["git", "cat-file", "blob", *(f":{path}" for path in sys.argv[1:2])]
    tracked = subprocess.run(asked, capture_output=True).stdout.decode("utf-8", "surrogateescape")
    sys.stdout.buffer.write(clean(text, tracked).encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()
