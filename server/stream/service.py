"""The gRPC server that companies connect to: authentication, connected companies, one phase of requests and answers.

A company is identified by its certificate only; nothing in a frame or a message can change that. A company that is
absent, slow or disconnected is missing from the answers of a phase.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc

from ...errors import ProtocolError, RunError
from ...protocol.transport.certificates import OwnCertificate
from ...protocol.transport.frames import Closed
from ...protocol.transport.frames_pb2 import Frame
from ...protocol.transport.frames_pb2_grpc import DataPlaneServicer, add_DataPlaneServicer_to_server
from ...protocol.transport.pinned import PinnedCertificates
from . import limits
from .company_stream import Link

log = logging.getLogger("fedblocks.transport")

Answers = queue.SimpleQueue[tuple[str, bytes | None]]


class AggregationService(DataPlaneServicer):
    """Holds the companies' streams of one run.

    service = AggregationService(OwnCertificate.load(folder), PinnedCertificates.load(folder / "companies"), run)
    port = service.start("0.0.0.0:9443")
    for company, content in service.ask("query.keys", {"company-0": b"..."}, timeout=60): ...
    service.close()
    """

    def __init__(
        self,
        own: OwnCertificate,
        pinned: PinnedCertificates,
        run: str,
        *,
        largest_message: int = 1 << 30,
        greeting_timeout: float = 10.0,
    ) -> None:
        self.pinned = pinned
        self._own = own
        self._run = run
        self._largest = largest_message
        self._greeting_timeout = greeting_timeout
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._streams: Counter[str] = Counter()
        self._open: dict[int, Answers] = {}
        self._ids = itertools.count(1)
        self._refused: Counter[str] = Counter()
        workers = ThreadPoolExecutor(limits.threads(len(pinned.companies)), thread_name_prefix="data-plane")
        self._server = grpc.server(workers, options=limits.server_options())
        add_DataPlaneServicer_to_server(self, self._server)

    def start(self, address: str) -> int:
        """Listen; returns the port, which the system chooses for `host:0`. RunError if it cannot listen."""
        try:
            port: int = self._server.add_secure_port(
                address, self._own.server_credentials(lambda: self.pinned.pem)
            )
        except RuntimeError:
            port = 0
        if port == 0:
            raise RunError(f"cannot listen on {address}")
        self._server.start()
        return port

    def close(self, code: str = "done") -> None:
        """Tell the companies that the run is over, or "later" where it will go on, and stop."""
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.end(code)
        self._server.stop(grace=2.0).wait()

    @property
    def connected(self) -> tuple[str, ...]:
        """Companies with a stream; those whose certificate is not pinned any more are sent away."""
        with self._lock:
            links = dict(self._links)
        gone = {
            company for company, link in links.items() if not self.pinned.holds(company, link.certificate)
        }
        for company in gone:
            log.warning("%s is sent away: its certificate is not pinned any more", company)
            self._drop(links[company], "unknown_certificate")
        return tuple(sorted(links.keys() - gone))

    def ask(self, kind: str, contents: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        """Send each named company its request now; yields answers as they arrive, until all have or time is up."""
        deadline, answers, waiting = time.monotonic() + timeout, Answers(), {}
        _ = self.connected  # who was revoked meanwhile is asked nothing more
        for company, content in contents.items():
            with self._lock:
                link, id_ = self._links.get(company), next(self._ids)
                self._open[id_] = answers
            if link is not None and link.ask(id_, kind, content, timeout):
                waiting[company] = (id_, link)
            else:
                self._forget(id_)
        return self._collected(waiting, answers, deadline)

    def _collected(
        self, waiting: dict[str, tuple[int, Link]], answers: Answers, deadline: float
    ) -> Iterator[tuple[str, bytes]]:
        try:
            while waiting:
                try:
                    company, content = answers.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    return
                del waiting[company]
                if content is not None:
                    yield company, content
        finally:
            for id_, link in waiting.values():
                link.give_up(id_)
                self._forget(id_)

    def _forget(self, id_: int) -> Answers | None:
        with self._lock:
            return self._open.pop(id_, None)

    def _answered(self, company: str, id_: int, content: bytes | None) -> None:
        answers = self._forget(id_)
        if answers is not None:
            answers.put((company, content))

    def Exchange(self, request_iterator: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
        """Called by gRPC for each stream of a company, from its certificate to its end."""
        presented = context.auth_context().get("x509_pem_cert") or [b""]
        company = self.pinned.owner(presented[0])
        if company is None:
            log.warning("refused a certificate that is not pinned")
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "unknown_certificate")
        with self._lock:
            self._streams[company] += 1
            crowded = self._streams[company] > limits.STREAMS
            self._refused[company] += crowded
            times = self._refused[company]
        try:
            if crowded:
                if times & (times - 1) == 0:  # the 1st, 2nd, 4th, ...: many refusals must not fill the disk
                    log.warning("refused %d streams of %s, which has enough", times, company)
                _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
            link = Link(company, presented[0], self._run, self._largest, self._answered)
            if not context.add_callback(link.end):
                return
            threading.Thread(target=self._read, args=(link, request_iterator), daemon=True).start()
            try:
                yield from link.outgoing()
            except Exception as error:  # gRPC would send the text of the exception
                log.error("sending to %s failed (%s)", company, type(error).__name__)
                _refuse(context, grpc.StatusCode.INTERNAL, "internal")
            finally:
                self._drop(link)
        finally:
            with self._lock:
                self._streams[company] -= 1

    def _read(self, link: Link, frames: Iterator[Frame]) -> None:
        """The reading thread of a stream; any error in it ends that company's stream."""
        code, silence = None, threading.Timer(self._greeting_timeout, link.end, ("malformed",))
        silence.start()
        try:
            link.greet(frames)
            silence.cancel()
            self._admit(link)
            link.listen(frames)
        except Closed as end:
            log.info("%s left (%s)", link.company, end.code)
        except ProtocolError as error:
            code = error.code
            log.warning("%s refused: %s", link.company, error)
        except Exception as error:  # a broken stream: gRPC has no narrower type for it
            log.info("%s is gone (%s)", link.company, type(error).__name__)
        finally:
            silence.cancel()
            self._drop(link, code)

    def _admit(self, link: Link) -> None:
        """A company's newest stream replaces its older one, which may be broken without being noticed yet."""
        with self._lock:
            older = self._links.get(link.company)
            self._links[link.company] = link
        if older is not None:
            self._drop(older, "replaced")

    def _drop(self, link: Link, code: str | None = None) -> None:
        with self._lock:
            if self._links.get(link.company) is link:
                del self._links[link.company]
        link.end(code)
        owed = link.owes
        if owed is not None:
            self._answered(link.company, owed, None)


def _refuse(context: grpc.ServicerContext, status: grpc.StatusCode, code: str) -> NoReturn:
    """End a stream with a code in its trailers. Flow control does not delay these, so a company that never reads
    blocks no thread, as it would with a frame."""
    context.abort(status, code)
    raise AssertionError("gRPC's abort raises")
