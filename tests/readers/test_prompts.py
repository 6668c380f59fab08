"""The prompts of readers, teachers and judges."""

from __future__ import annotations

import re

from finemem_lib.readers.prompts import load_prompt
from tests.helpers.paths import ROOT


def test_every_prompt_keeps_what_others_wrote_apart_and_has_a_version():
    names = [path.stem for path in (ROOT / "finemem_lib/prompts").iterdir()]
    assert {"read", "teach", "judge_answer", "manage"} <= {*names}
    for name in names:
        prompt = load_prompt(name)
        filled_in = set(re.findall(r"\$(\w+)", prompt.system))
        assert prompt.version >= 1 and filled_in <= {"core_tokens"}, "a number of the settings"
        assert "written by others" in prompt.system or "were written by" in prompt.system
