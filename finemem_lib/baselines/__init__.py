"""Systems that others published, behind the protocols of this library.

`systems.SYSTEMS` lists them, `systems.make_system` returns a system with its manager and rollout
settings, and `systems.check_systems` raises before a run if a system cannot be played, with the
remedy. The managers are `long_context.LongContext`, `text_memory.OverwrittenText`,
`prompted.PromptedManager`, `memory_r1.MemoryR1Rules`, `mirix.MirixProxy`, `a_mem.AMemProxy` and
`o_mem.OMemProxy`.
"""
