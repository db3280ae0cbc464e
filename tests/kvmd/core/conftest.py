"""Property-based tests without a deadline for one example: the machine's cores are shared."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("core")
