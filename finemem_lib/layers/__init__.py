"""Mem-alpha's layered memory: core, semantic and episodic stores, its calls and its content reward.

`memory.LayeredMemory` is used instead of the flat memory; `memory.LayerRules` sets its behaviour in
edge cases. `operations` parses and formats Mem-alpha's tool calls. `content_reward` computes the
content reward: whether the content of a call fits its store.
"""
