"""One hypothesis profile for all tests: other work on the machine must not fail a correct test."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("workbench")
