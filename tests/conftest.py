"""What every test shares: hypothesis without a deadline for single examples, which noisy machines would miss."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
