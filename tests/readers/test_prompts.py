"""The prompts of readers, teachers and judges."""

from __future__ import annotations

from finemem_lib.readers.prompts import load_prompt
from tests.helpers.paths import ROOT


def test_every_prompt_keeps_what_others_wrote_apart_and_has_a_version():
    names = [path.stem for path in (ROOT / "finemem_lib/prompts").iterdir()]
    assert len(names) == 4
    for name in names:
        prompt = load_prompt(name)
        assert prompt.version >= 1 and "$" not in prompt.system
        assert "written by others" in prompt.system or "were written by" in prompt.system
