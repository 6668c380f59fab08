"""Memory managers: who edits the memory.

Scripted and model managers, their prompts, loading and sampling, and lockstep rollouts.
"""
