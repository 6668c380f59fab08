"""What tests share: one hypothesis profile (other work on the machine must not fail a correct
test), one JupyterLab, and pictures of what a failed test saw in its browser."""

import gc
import re

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workbench")

collect_ignore = ["notebook_environment.py"]  # a plugin for nbval that changes the environment

LONGEST_FIRST = (
    r"tests/house/test_types",
    r"tests/notebooks/test_execution\.py::test_(a_changed|the_report)",
    r"notebooks/0[1-6]_",
    r"tests/cli/test_resume\.py::test_(killed|the_next)",
    r"tests/notebooks/test_execution\.py::test_the_real_profile",
    r"tests/training/test_full_size",
    r"tests/house/test_packaging",
    r"tests/docs/test_site",
    r"tests/house/test_release",
    r"tests/notebooks/test_in_browser",
    r"tests/explorers/test_untrusted_browser",
    *(rf"notebooks/{number}_" for number in ("07", "10", "09", "12", "11", "08")),
    r"tests/cli/test_run\.py",
    r"tests/cli/test_resume\.py::test_notebook_04",
)
"""Tests that one process runs together, as their fixtures are, or because a notebook reads what
those before it wrote. They begin first: one that began last would be waited for by all."""


def group_of(nodeid):
    """Return what a test is run together with: one of `LONGEST_FIRST`, else its file."""
    return next(
        (group for group in LONGEST_FIRST if re.match(group, nodeid)), nodeid.partition("::")[0]
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let processes share the tests by group where they share them by file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return ByGroup(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # one of several processes
        ranks = {group: rank for rank, group in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: ranks.get(group_of(item.nodeid), len(ranks)))


@pytest.fixture(scope="session")
def frozen_imports():
    """Keep the garbage collector, which every training run starts once, out of what is imported."""
    from finemem_lib.training.trl_adapter import load_trainer_class

    load_trainer_class()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab; the tests run notebooks in it."""
    from tests.helpers.browser import skip_without_chromium
    from tests.helpers.lab import served

    skip_without_chromium()
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    with served(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of all notebooks at small sizes."""
    from tests.helpers.notebook_runs import make_small_run

    return make_small_run(tmp_path_factory.mktemp("runs"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep screenshots of the pages that are open when a test fails."""
    report = yield
    if report.failed and item.get_closest_marker("browser"):
        from tests.helpers.browser import photograph

        for path in photograph(re.sub(r"\W+", "-", item.name)):
            report.sections.append(("screenshot", str(path)))
    return report
