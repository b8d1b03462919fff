"""No core dumps of a process that holds private data or keys."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """For this process and those that it starts; a crash would write its memory to disk, keys and examples too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
