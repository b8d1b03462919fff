"""One secure step over the data plane, and phase by phase through Flower's own messages.

Both run the same apps (`transport_apps`) with the same messages, five companies in processes of their own on
loopback. The data plane with mutual TLS; Flower with a SuperLink and SuperNodes, which spares it the TLS.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from ...client.agent import Agent
from ...client.endpoint import FOLDER, Endpoint
from ...glibc_malloc import keep_freed_memory
from ...protocol.transport import OwnCertificate, PinnedCertificates
from ...protocol.transport.certificates import COORDINATOR
from ...server.stream import AggregationService, StreamGrid
from .transport_apps import COMPANIES, gather, party, secure_step
from .transport_flower import flower_step

_WARM_UP = 3
_TIMEOUT = 60.0


def measure(
    values: int, repeats: int, flower: bool, on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Median milliseconds of a step over gRPC and of its phases; seconds of a phase through Flower."""
    with companies() as service:
        cohort = gather(StreamGrid(service), COMPANIES, wait=_TIMEOUT, timeout=_TIMEOUT)
        steps = [secure_step(cohort, step, values) for step in range(repeats + _WARM_UP)][_WARM_UP:]
    milliseconds = [1e3 * sum(step.values()) for step in steps]
    result: dict[str, Any] = {
        "companies": COMPANIES,
        "values": values,
        "grpc_step_ms": round(statistics.median(milliseconds), 1),
        "grpc_step_ms_fastest": round(min(milliseconds), 1),
        "grpc_phase_ms": {
            phase: round(1e3 * statistics.median(step[phase] for step in steps), 1) for phase in steps[0]
        },
        "repeats": repeats,
    }
    on_progress(f"data plane: {result['grpc_step_ms']} ms a step")
    if flower:
        seconds = flower_step(values, on_progress)
        result["flower_phase_s"] = round(statistics.mean(seconds.values()), 2)
        result["flower_phases_s"] = {phase: round(value, 2) for phase, value in seconds.items()}
        result["flower_step_s"] = round(sum(seconds.values()), 2)
        result["speedup_over_flower"] = round(1e3 * result["flower_step_s"] / result["grpc_step_ms"], 1)
    return result


@contextmanager
def companies() -> Iterator[AggregationService]:
    """A listening service, and companies in processes of their own that dial it."""
    coordinator = OwnCertificate.create(COORDINATOR)
    owned = {f"company-{i}": OwnCertificate.create(f"company-{i}") for i in range(COMPANIES)}
    pinned = PinnedCertificates({name: own.certificate for name, own in owned.items()})
    service = AggregationService(coordinator, pinned, "bench")
    port = service.start("127.0.0.1:0")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for i, (name, own) in enumerate(owned.items()):
            home = Path(folder) / name / FOLDER
            own.save(home)
            (home / "coordinator.pem").write_bytes(coordinator.certificate)
            (home / "transport.toml").write_text(f'address = "127.0.0.1:{port}"\n', "utf-8")
            processes.append(spawn.Process(target=_company, args=(home.parent, i), daemon=True))
        for process in processes:
            process.start()
        try:
            deadline = time.monotonic() + _TIMEOUT
            while len(service.connected) < COMPANIES:
                if time.monotonic() > deadline or any(p.exitcode for p in processes):
                    raise RuntimeError("the companies' processes did not come up")
                time.sleep(0.05)
            yield service
        finally:
            service.close()
            for process in processes:
                process.join(timeout=5.0)
                process.terminate()


def _company(home: Path, index: int) -> None:
    keep_freed_memory()
    context = Context(1, index + 1, {"partition-id": index}, RecordDict(), {})
    Agent(Endpoint.of(home), party, context).serve()
