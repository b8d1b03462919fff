"""Private training in a thread of its own, on one core, that flushes subnormal numbers.

One core, because with several an example's place in a batch decides which of them computes it, and with that its last
bits (see `invariance`). Flushing, so that the time of training does not tell values.

A processor takes up to 150 times as long for a product of subnormal operands (Andrysco et al. 2015, "On
subnormal floating point and abnormal timing"). Weights can be made so that activations are subnormal only for
examples with some attribute: how long training takes would then count them, and no noise covers that.

Both modes are needed: results flushed to zero (FTZ) and operands read as zero (DAZ). They belong to a thread, and
`torch.set_flush_denormal` sets them in the thread that calls it, not in OpenMP's workers: another reason for one
core. They end with the thread: accountants go on with gradual underflow.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import PrivacyError

T = TypeVar("T")

# Bits of a float32 and a factor. Made from bits: under DAZ a subnormal literal would be zero already.
_SUBNORMAL_OPERAND = (1 << 22, 2.0**20)  # 2^-127: the product is normal, unless operands are flushed
_SUBNORMAL_RESULT = (1 << 23, 0.5)  # 2^-126, the smallest normal one: the product is not, unless flushed
# PyTorch shares elementwise work in parts of this size, one a thread at the least (at::internal::GRAIN_SIZE).
_GRAIN = 32768


def flushed(work: Callable[[], T]) -> T:
    """`work()` in a thread of its own, on one core, all of whose arithmetic flushes subnormals to zero.

    What it raises is raised here. An interrupt of the caller stops it as well, and is raised once it has ended.
    What PyTorch keeps for each thread (grad mode, autocast) is as in any new thread. Sums of tiny
    probabilities, as in accounting, belong elsewhere.

    Raises a PrivacyError, before any work, where the machine cannot flush.
    """
    outcome: Future[T] = Future()
    threads = torch.get_num_threads()

    def run() -> None:
        try:
            _flush()
            outcome.set_result(work())
        except BaseException as error:  # an interrupt too: the caller raises it
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="private-training", daemon=True)
    thread.start()
    try:
        outcome.exception()  # waits; unlike `join`, it still knows after an interrupt whether the work has ended
    except BaseException:
        if not outcome.done():
            _interrupt(thread)
        outcome.exception()
        raise
    finally:
        # The number is the process's, for threads to come; one that has begun keeps its own.
        torch.set_num_threads(threads)
    thread.join()
    return outcome.result()


def _flush() -> None:
    """One core and both modes for this thread; refuse if it does not have them."""
    torch.get_num_threads()  # takes the process's number over, once a thread: before it is set, or it would win
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True) or not flushes():
        raise PrivacyError(
            "subnormal numbers: expected this processor to flush them to zero, or the time of private training would "
            "tell values; it does not, and private training is refused on it"
        )


def flushes() -> bool:
    """Whether this thread and all workers of its team flush, in elementwise and in matrix kernels.

    Large enough for every thread to get a share.
    """
    threads = torch.get_num_threads()
    zero = True
    for bits, factor in (_SUBNORMAL_OPERAND, _SUBNORMAL_RESULT):
        elementwise = _filled(bits, _GRAIN * threads) * factor
        product = _filled(bits, 64 * threads, 64) @ torch.full((64, 64 * threads), factor)
        # Compared as bits: under DAZ a subnormal number equals zero.
        zero = zero and not any(bool(x.view(torch.int32).any()) for x in (elementwise, product))
    return zero


def _filled(bits: int, *shape: int) -> Tensor:
    return torch.full(shape, bits, dtype=torch.int32).view(torch.float32)


def _interrupt(thread: threading.Thread) -> None:
    """Raise a KeyboardInterrupt in the thread, at its next step in Python."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
    )
