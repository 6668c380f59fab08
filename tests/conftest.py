"""One hypothesis profile for all tests: other work on the machine must not fail a correct test."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("workbench")

collect_ignore = ["notebook_environment.py"]  # a plugin for nbval that changes the environment
