"""What tests share: one hypothesis profile (other work on the machine must not fail a correct
test), one JupyterLab, and pictures of what a failed test saw in its browser."""

import gc
import re

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workbench")

collect_ignore = ["notebook_environment.py"]  # a plugin for nbval that changes the environment


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep screenshots of the pages that are open when a test fails."""
    report = yield
    if report.failed and item.get_closest_marker("browser"):
        from tests.helpers.browser import photograph

        for path in photograph(re.sub(r"\W+", "-", item.name)):
            report.sections.append(("screenshot", str(path)))
    return report
