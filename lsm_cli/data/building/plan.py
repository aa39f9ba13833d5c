"""What is known of a build before the logs are read as a whole: sources, fields, types, and the memory there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lsm_cli.data.building.scan import Source, is_level, settle_kinds
from lsm_cli.data.description import Description

LEAST_ROWS = 1 << 15  # of a batch: below, overheads rule
_PLAIN = ("item", "scenario", "domain", "action")  # fields of our own, before the description's
_OTHER = ("user", "split", "target")  # roles that are no fields


class Progress(Protocol):
    """Who watches; see `report.console`."""

    def advance(self, amount: float = 1, total: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...


class Unwatched:
    def advance(self, amount: float = 1, total: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Plan:
    """A build's fixed points.

    Attributes:
        samples: None when the samples are made from events.
        kinds: role -> "int" or "text".
        resolution: ticks per second while reading; the store may be coarser.
        rows: of a batch.
        memory: bytes.
    """

    description: Description
    events: list[Source]
    samples: Source | None
    kinds: dict[str, str]
    resolution: int
    rows: int
    memory: int
    progress: Progress

    @classmethod
    def of(
        cls, description: Description, events: list[Source], samples: Source | None, memory: int, progress: Progress
    ) -> Plan:
        everything = [*events, *([samples] if samples else [])]
        kinds = settle_kinds(everything)
        resolution = max(source.resolution for source in everything)
        rows = min(max(memory >> 11, LEAST_ROWS), 1 << 20)
        return cls(description, events, samples, kinds, resolution, rows, memory, progress)

    @property
    def sources(self) -> list[Source]:
        return [*self.events, *([self.samples] if self.samples else [])]

    @property
    def depth(self) -> int:
        """Declared category levels."""
        return len({role for source in self.sources for role in source.roles if is_level(role)})

    @property
    def categories_in_history(self) -> bool:
        return any(is_level(role) for source in self.events for role in source.roles)

    @property
    def fields(self) -> list[str]:
        """Plain fields in the store's order."""
        present = dict.fromkeys(role for source in self.sources for role in source.roles)
        extra = [role for role in present if not is_level(role) and role not in (*_PLAIN, *_OTHER)]
        return [name for name in _PLAIN if name in present] + extra

    def in_history(self, name: str) -> bool:
        return any(name in source.roles for source in self.events)

    def in_sample(self, name: str) -> bool:
        if self.samples is not None:
            return name in self.samples.roles
        attributes = {role for source in self.events for role in source.joined}
        return name in ("item", "scenario", "domain") or name in attributes

    def domain_of(self, source: Source) -> str | None:
        """A source's constant domain; samples that name none have the events' domain where there is only one."""
        if source is self.samples and "domain" not in source.roles:
            named = {events.constants.get("domain") for events in self.events}
            return next(iter(named)) if len(named) == 1 else None
        return source.constants.get("domain")
