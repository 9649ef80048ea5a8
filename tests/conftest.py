"""For every test: property tests are judged by what they find, never by how long they took."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "stairwell", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("stairwell")
