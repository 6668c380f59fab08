"""Systems that others published, behind the protocols of this library.

`systems.SYSTEMS` lists them, `systems.make_system` returns one with the settings that it is played
with, and `systems.check_systems` says before a run which cannot be played here, with the remedy.
`long_context.LongContext`, `text_memory.OverwrittenText`, `prompted.PromptedManager`,
`memory_r1.MemoryR1Rules`, `mirix.MirixProxy`, `a_mem.AMemProxy` and `o_mem.OMemProxy` are the
managers.
"""
