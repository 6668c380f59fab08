"""Memory managers: who edits the memory.

`model.make_manager` returns a manager by name, `model.load_manager` one from a checkpoint, and
`rollout.play` lets a manager play instances, all rollouts in lockstep.
"""
