"""Whether the daemon lives and whether it is ready, by component and with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

log = structlog.get_logger(__name__)


class Health:
    """Readiness of named components and one fatal reason; the daemon is ready when all components are.

    For one event loop: no locks, and every method returns at once. Changes of readiness are logged.
    """

    def __init__(self, components: Iterable[str] = ()) -> None:
        self._reasons: dict[str, str | None] = dict.fromkeys(components, "starting")
        self._fatal_reason: str | None = None

    @property
    def is_alive(self) -> bool:
        """False once something fatal happened."""
        return self._fatal_reason is None

    @property
    def is_ready(self) -> bool:
        """True while nothing fatal happened and every component is ready."""
        return self.is_alive and all(reason is None for reason in self._reasons.values())

    @property
    def fatal_reason(self) -> str | None:
        """Why the daemon stops, or None while it lives."""
        return self._fatal_reason

    @property
    def reasons(self) -> Mapping[str, str | None]:
        """For each component, why it is not ready, or None where it is."""
        return self._reasons

    def ready(self, component: str) -> None:
        """The component can do its work."""
        if self._reasons.get(component, "") is not None:
            log.info("component_ready", component=component)
        self._reasons[component] = None

    def not_ready(self, component: str, reason: str) -> None:
        """The component cannot do its work, for a reason that an operator understands."""
        if self._reasons.get(component) != reason:
            log.warning("component_not_ready", component=component, reason=reason)
        self._reasons[component] = reason

    def remove(self, component: str) -> None:
        """The component is no longer part of the daemon, such as a partition that was revoked."""
        self._reasons.pop(component, None)

    def fatal(self, reason: str) -> None:
        """The daemon cannot go on; the first reason stands, since those after it follow from it."""
        if self._fatal_reason is None:
            log.error("fatal", reason=reason)
            self._fatal_reason = reason
