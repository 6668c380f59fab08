"""Export figures as image files, and embed images of figures in executed notebooks.

GitHub, nbviewer and nbconvert do not draw plotly figures. `finemem pictures` adds a PNG to the
plotly JSON of each: JupyterLab still draws the figure, the others show the image. nbval does not
compare PNG.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.util.console import EXIT_CODES, UsageError
from finemem_lib.util.files import write_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_NOTEBOOK_BYTES = 150_000
"""Maximum bytes of all images of a notebook in its file (base64)."""

WIDTH = 900
"""Width of the layout of a figure in pixels."""

SCALES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4)
"""Image pixels per figure pixel, in the order in which they are tried until all images fit."""

COLOURS = 64
"""Number of colours of an image: those of the figure, and shades for smooth text."""

REMEDY = (
    "install Chromium (Debian: apt-get install chromium) and the extra `figures` "
    "(pip install -e '.[figures]')"
)


def add_command(commands: Any) -> None:
    """Add `finemem pictures` to the command line."""
    command = commands.add_parser(
        "pictures",
        help="put pictures of their figures into executed notebooks",
        description="For GitHub, nbviewer and nbconvert, which draw no plotly figure. Pictures "
        "that are there are drawn again; cells and other outputs stay as they are.",
    )
    command.set_defaults(command=_pictures_command, last_line=True)
    command.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")


def _pictures_command(options: argparse.Namespace) -> int:
    """Embed images in notebooks, print the result for each, and return the exit code."""
    import nbformat

    notebooks = {}
    for path in options.notebooks:
        try:
            notebooks[path] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(notebooks[path], dict):  # nbformat itself fails on a list
                raise TypeError
            nbformat.validate(notebooks[path])
        except (OSError, ValueError, LookupError, TypeError, nbformat.ValidationError) as error:
            raise UsageError(
                f"{path} cannot be read as a notebook ({type(error).__name__}), expected executed "
                "ones, such as notebooks/*.ipynb"
            ) from error
    for path, notebook in notebooks.items():
        try:
            number, size = _add_pictures(notebook)
        except (RuntimeError, ValueError) as error:
            print(f"failed: {path}: {error}", file=sys.stderr)
            return EXIT_CODES["failed"]
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"  # in nbformat's format
        write_bytes(path, text.encode())
        print(f"{path.name}: {number} pictures, {size / 1000:.0f} kB")
    return EXIT_CODES["ok"]


def _add_pictures(notebook: Mapping[str, Any]) -> tuple[int, int]:
    """Add a PNG with alt text to every figure output of an executed notebook, in place."""
    from finemem_lib.figures.style import PLOTLY_MIME

    outputs = [
        output
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if PLOTLY_MIME in output.get("data", {})
    ]
    specs = [output["data"][PLOTLY_MIME] for output in outputs]
    size = 0
    for scale in SCALES:
        drawn = draw(specs, "png", WIDTH, scale)
        if problem := next((one for one in drawn if isinstance(one, Exception)), None):
            raise RuntimeError(f"no picture could be drawn ({_first_line(problem)}); {REMEDY}")
        images = [
            base64.b64encode(_few_colours(one)).decode()
            for one in drawn
            if not isinstance(one, Exception)
        ]
        size = sum(map(len, images))
        if size <= MAX_NOTEBOOK_BYTES:
            break
    else:
        raise ValueError(
            f"its pictures take {size} bytes, expected at most {MAX_NOTEBOOK_BYTES}; show fewer "
            "figures in it"
        )
    for output, spec, image in zip(outputs, specs, images, strict=True):
        output["data"] = dict(sorted((output["data"] | {"image/png": image}).items()))
        output["metadata"]["image/png"] = {"alt": _alt(spec.get("layout", {}))}
    return len(images), size


def _alt(layout: Mapping[str, Any]) -> str:
    """Return the alt text of an image; figures from other libraries may have no title."""
    from finemem_lib.figures.style import plain

    title, meta = layout.get("title") or {}, layout.get("meta")
    named = plain(title.get("text", "Figure") if isinstance(title, dict) else title)
    alt = meta.get("alt") if isinstance(meta, dict) else None
    return f"{named}. {alt}" if alt else named


def _few_colours(png: bytes) -> bytes:
    """Convert a PNG to one with a palette, a fifth of the size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError(f"Pillow is not installed; {REMEDY}") from error
    small = io.BytesIO()
    full = Image.open(io.BytesIO(png)).convert("RGB")
    full.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


def save_figures(figures: Mapping[Path, go.Figure]) -> list[Path]:
    """Write figures as SVG, and return the paths.

    If kaleido or its browser is missing, each is written as a small HTML page instead, with one
    plotly.js in the folder, and a line on stderr states how many and what to install.

    Args:
        figures: The figures by path of their file without suffix.

    Raises:
        OSError: a file could not be written.
    """
    from finemem_lib.figures.style import CONFIG

    paths, problems = [], []
    drawn = draw([figure.to_dict() for figure in figures.values()], "svg", WIDTH)
    for (stem, figure), image in zip(figures.items(), drawn, strict=True):
        if isinstance(image, bytes):
            paths.append(write_bytes(stem.with_name(f"{stem.name}.svg"), _fixed_ids(image)))
            continue
        problems.append(image)
        page = figure.to_html(
            config=CONFIG, div_id=stem.name, auto_play=False, include_plotlyjs="directory"
        )
        if not (script := stem.with_name("plotly.min.js")).exists():
            write_bytes(script, plotlyjs().encode())
        paths.append(write_bytes(stem.with_name(f"{stem.name}.html"), page.encode()))
    if problems:
        print(
            f"{len(problems)} of {len(figures)} figures were written as HTML instead of SVG "
            f"({_first_line(problems[0])}); for images {REMEDY}",
            file=sys.stderr,
        )
    return paths


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]:.100}"


def plotlyjs() -> str:
    """Return the source of plotly.js."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def draw(
    specs: Sequence[Mapping[str, Any]], form: str, width: int, scale: float = 1.0
) -> list[bytes | Exception]:
    """Return the image of every figure, or the error that prevented it.

    Args:
        specs: Figures as plotly's JSON; of a figure with frames the first state is drawn.
        form: "svg" or "png".
        width: Width of the layout of the figures in pixels.
        scale: PNG pixels per layout pixel.
    """
    specs = [
        {
            "data": [
                # otherwise random, and part of the ids in an SVG
                {**trace, "uid": f"{number:06x}"}
                for number, trace in enumerate(spec.get("data", ()))
            ],
            "layout": spec.get("layout", {}),
        }
        for spec in specs
    ]
    images: list[bytes | Exception] = []

    async def draw_all() -> None:
        import kaleido

        logging.getLogger("choreographer.channels.pipe").addFilter(is_real_error)
        # by default, kaleido downloads MathJax
        async with kaleido.Kaleido(n=1, mathjax=False) as browser:
            for spec in specs:
                height = spec["layout"].get("height")
                opts = {"format": form, "width": width, "height": height, "scale": scale}
                try:
                    images.append(await browser.calc_fig(spec, opts=opts))
                except Exception as error:  # the error of this figure only
                    images.append(error)

    def run() -> None:
        try:
            asyncio.run(draw_all())
        except Exception as error:  # kaleido, choreographer and browser raise various errors
            images.extend([error] * (len(specs) - len(images)))

    # In a thread, because the caller may run in an event loop, as notebooks do.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return images


def is_real_error(record: logging.LogRecord) -> bool:
    """Return whether a log record of choreographer, kaleido's browser helper, is an error.

    When the browser ends, it sends "{bye}". If that arrives together with the last answer, it is
    logged as invalid JSON with a traceback.

    Args:
        record: A record of the logger.
    """
    cause = record.exc_info and getattr(record.exc_info[1], "__cause__", None)
    return getattr(cause, "doc", None) != "{bye}\n"


def _fixed_ids(image: bytes) -> bytes:
    """Replace the random id in an SVG of plotly, so that equal figures have equal files."""
    found = re.search(rb'id="defs-([0-9a-f]{6})"', image)
    return image.replace(found[1], b"figure") if found else image
