"""Mem-alpha's layered memory: core, semantic and episodic stores, its calls and its content reward.

`memory.LayeredMemory` replaces the core's flat memory; `memory.LayerRules` names its edge rules.
`operations` reads and writes Mem-alpha's tool calls. `content_reward` judges whether a write suits
its store.
"""
