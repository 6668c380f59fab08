"""Memory managers: policies that edit the memory.

`model.make_manager` returns a manager by name, `model.load_manager` loads a manager from a
checkpoint, and `rollout.play` plays instances with a manager, all rollouts in lockstep.
"""
