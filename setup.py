"""Copy notebooks and shipped data into the wheel; everything else stands in pyproject.toml.

They lie at the top of the repository, where people look for them, and nowhere else. setuptools
packs only what lies inside a package, so the build copies them into `finemem_lib/workbench` of the
wheel, from where `finemem init` takes them. An editable install copies nothing: it reads the
checkout.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = Path("finemem_lib/cli/workbench_files.txt")


def carried_files() -> list[str]:
    """Return the files that a wheel carries, as paths from the root of the repository."""
    patterns = PATTERNS.read_text(encoding="utf-8").split()
    return sorted(str(path) for one in patterns for path in Path().glob(one) if path.is_file())


class BuildWithWorkbench(build_py):
    """Build the package with the files of `PATTERNS` in it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in carried_files():
            target = Path(self.build_lib, "finemem_lib", "workbench", name)
            self.mkpath(str(target.parent))
            self.copy_file(name, str(target))

    def get_source_files(self) -> list[str]:
        """Return the files that the build reads, which is how they come into an sdist."""
        return [*super().get_source_files(), str(PATTERNS), *carried_files()]


setup(cmdclass={"build_py": BuildWithWorkbench})
