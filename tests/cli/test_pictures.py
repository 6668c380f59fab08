"""Figures as image files, and pictures in notebooks."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import bs4
import nbformat
import nbformat.v4 as nb
import pytest

from finemem_lib.cli import pictures
from finemem_lib.cli.main import main
from finemem_lib.figures import outputs
from tests.helpers.browser import CHROMIUM
from tests.helpers.figure_samples import make_figures
from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"


def require_images() -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")


def make_notebook(path: Path, count: int = 2) -> Path:
    """Write a notebook that shows figures, one in each cell, and prints."""
    cells = [
        nb.new_code_cell(
            "show(figure)",
            id=f"cell-{number}",
            outputs=[nb.new_output("display_data", bundle) for bundle in outputs(figure)],
        )
        for number, figure in enumerate(list(make_figures().values())[:count])
    ]
    cells.append(nb.new_code_cell("1", id="last", outputs=[nb.new_output("stream", text="1")]))
    text = json.dumps(nb.new_notebook(cells=cells), indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def bundles(path: Path) -> list[dict[str, str]]:
    return [
        output["data"]
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", ())
        if PLOTLY in output.get("data", {})
    ]


def as_html(path: Path, template: str = "lab") -> bs4.BeautifulSoup:
    """Return what ``jupyter nbconvert --to html`` makes of a notebook. Its default template, "lab",
    does not know alt texts."""
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter(template_name=template).from_filename(str(path))
    return bs4.BeautifulSoup(html, "html.parser")


def test_without_a_browser_figures_are_saved_as_html_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    figures = {tmp_path / name: one for name, one in list(make_figures().items())[:3]}
    paths = pictures.save_figures(figures)
    assert [path.suffix for path in paths] == [".html"] * 3
    assert "Plotly.newPlot" in paths[0].read_text("utf-8")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("3 of 3 figures were written as HTML") and "install chromium" in line
    assert not any(stem.name in line for stem in figures)


def test_without_a_browser_notebooks_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    path = make_notebook(tmp_path / "a.ipynb")
    before = path.read_bytes()
    assert main(["pictures", str(path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "no picture could be drawn" in line and "install chromium" in line
    assert path.read_bytes() == before


def test_what_is_no_notebook_is_refused_before_any_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_notebook(tmp_path / "a.ipynb"), tmp_path / "b.ipynb"
    bad.write_text("[]")
    before = good.read_bytes()
    assert main(["pictures", str(good), str(bad)]) == 2
    assert "b.ipynb cannot be read as a notebook" in capsys.readouterr().err
    assert good.read_bytes() == before


@pytest.mark.browser
def test_every_figure_gets_a_small_picture_with_alt_text_and_nothing_else_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_images()
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    path = make_notebook(tmp_path / "a.ipynb")
    plain = json.loads(path.read_bytes())
    assert main(["pictures", str(path)]) == 0
    assert capsys.readouterr().out.startswith("a.ipynb: 2 pictures, ")
    once = path.read_bytes()
    assert main(["pictures", str(path)]) == 0
    assert path.read_bytes() == once, "drawn again, the same"
    found = bundles(path)
    assert len(found) == 2
    for bundle in found:
        assert list(bundle) == sorted(bundle)
        opened = image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert opened.mode == "P" and opened.width == pictures.WIDTH
    images = as_html(path, "classic").select("img[src^='data:image/png']")
    assert [one["alt"] for one in images] == [
        f"{bundle[PLOTLY]['layout']['title']['text']}. {bundle[PLOTLY]['layout']['meta']['alt']}"
        for bundle in found
    ]
    stripped = json.loads(once)
    for cell in stripped["cells"]:
        for output in cell["outputs"]:
            output.get("data", {}).pop("image/png", None)
            output.get("metadata", {}).pop("image/png", None)
    assert stripped == plain


@pytest.mark.browser
def test_figures_that_others_made_need_no_title_and_no_alt_text(tmp_path: Path) -> None:
    require_images()
    path = tmp_path / "own.ipynb"
    figures = {"data": [{"y": [1, 2]}]}, {"data": [], "layout": {"title": "Mine <b>"}}
    shown = [nb.new_output("display_data", {PLOTLY: figure}) for figure in figures]
    nbformat.write(nb.new_notebook(cells=[nb.new_code_cell("1", outputs=shown)]), path)
    assert main(["pictures", str(path)]) == 0
    [cell] = nbformat.read(path, as_version=4).cells
    assert [one.metadata["image/png"]["alt"] for one in cell.outputs] == ["Figure", "Mine "]


@pytest.mark.long
def test_where_there_are_many_figures_their_pictures_are_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_images()
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    path = make_notebook(tmp_path / "a.ipynb", count=1)
    assert main(["pictures", str(path)]) == 0
    [bundle] = bundles(path)
    size = len(bundle["image/png"])
    monkeypatch.setattr(pictures, "MAX_NOTEBOOK_BYTES", size - 1)
    assert main(["pictures", str(path)]) == 0
    [bundle] = bundles(path)
    assert len(bundle["image/png"]) < size
    opened = image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert opened.width == round(pictures.WIDTH * pictures.SCALES[1])
    monkeypatch.setattr(pictures, "MAX_NOTEBOOK_BYTES", 10)
    before = path.read_bytes()
    assert main(["pictures", str(path)]) == 1
    assert "expected at most 10" in capsys.readouterr().err and path.read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_of_a_committed_notebook_has_a_picture(path: Path) -> None:
    """`finemem pictures notebooks/*.ipynb` draws them, after notebooks were run and saved."""
    shown = bundles(path)
    assert shown
    sizes = [len(bundle.get("image/png", "")) for bundle in shown]
    assert all(sizes), "figures without a picture; run: finemem pictures notebooks/*.ipynb"
    assert sum(sizes) <= pictures.MAX_NOTEBOOK_BYTES
    images = as_html(path).select("img[src^='data:image/png']")
    assert len(images) == len(shown)


@pytest.mark.browser
def test_saved_images_are_small_and_the_same_every_time(tmp_path: Path) -> None:
    require_images()
    figure = make_figures()["question_audit"]  # its patterns have random ids in plotly
    first, second = pictures.save_figures({tmp_path / name: figure for name in ("a", "b")})
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 150_000 and first.name == "a.svg"
    assert "accepted" in first.read_text("utf-8")


def test_a_browser_that_says_goodbye_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Incident: the export of figures was complete and ended with a traceback."""
    pipe = pytest.importorskip("choreographer.channels.pipe", reason="kaleido is not installed")
    pipe._logger.addFilter(pictures.is_real_error)
    for read in ("{bye}\n", '{"id": 1'):
        try:
            pipe.wire.deserialize(read)
        except pipe.JSONError:
            pipe._logger.exception("of %s", read)
    assert [record.args for record in caplog.records] == [('{"id": 1',)]
