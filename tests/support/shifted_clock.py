"""A process whose clock is wrong: what the C library tells it of the time of day is shifted, its waits are not.

Everything in the process sees it, also TLS, which asks when certificates are valid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from support.processes import Command, Federation

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    const char *told = getenv("CLOCK_SHIFT");
    return told ? atol(told) : 0;
}
#define REAL(name, version) \
    static __typeof__(&name) real; \
    if (!real && !(real = dlvsym(RTLD_NEXT, #name, version))) real = dlsym(RTLD_NEXT, #name);

int clock_gettime(clockid_t id, struct timespec *now) {
    REAL(clock_gettime, "GLIBC_2.17")
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
/* Deadlines in the shifted time of day, back to the kernel's. Those of the monotonic clock are small. */
static const struct timespec *unshifted(const struct timespec *deadline, struct timespec *room) {
    if (!deadline || deadline->tv_sec < 1000000000L) return deadline;
    *room = *deadline;
    room->tv_sec -= shift();
    return room;
}
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *deadline) {
    REAL(pthread_cond_timedwait, "GLIBC_2.3.2")
    struct timespec room;
    return real(cond, mutex, unshifted(deadline, &room));
}
int sem_timedwait(sem_t *sem, const struct timespec *deadline) {
    REAL(sem_timedwait, "GLIBC_2.34")
    struct timespec room;
    return real(sem, unshifted(deadline, &room));
}
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    va_list list;
    va_start(list, number);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec room;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME))
        a[3] = (long)unshifted((const struct timespec *)a[3], &room);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""
_START = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"


class _Process:
    """`subprocess.Popen` with the face that `Command` knows."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._started, self.pid = started, started.pid

    def join(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._started.wait(seconds)

    @property
    def exitcode(self) -> int | None:
        return self._started.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None


def started(made: Federation, shim: Path, seconds: int, *words: str | Path) -> Command:
    """A `fedblocks` command whose clock is `seconds` ahead."""
    place = made.logs / f"shifted-{len(made.started)}"
    out, err = place.with_suffix(".out"), place.with_suffix(".err")
    env = os.environ | {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(seconds), "OMP_NUM_THREADS": "1"}
    with out.open("wb") as told, err.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, words)], stdout=told, stderr=said, env=env
        )
    command = Command(_Process(process), out, err, coordinates="serve" in words)  # type: ignore[arg-type]
    made.started.append(command)
    return command


def clock_shim(folder: Path) -> Path:
    """The library to be loaded before the C library; skips the test where it cannot be compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a shifted clock takes a C compiler, on Linux")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
