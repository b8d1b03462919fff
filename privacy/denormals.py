"""Private training in a separate thread, on one core, that flushes subnormal numbers to zero.

One core, because with several an example's place in a batch decides which core computes it, and so its last bits (see
`invariance`). Flushing, so that the duration of training does not reveal values.

A processor takes up to 150 times as long for a product of subnormal operands (Andrysco et al. 2015, "On
subnormal floating point and abnormal timing"). Weights can be made so that activations are subnormal only for
examples with some attribute: the duration of training would then count them, and no noise protects that.

Both modes are needed: results flushed to zero (FTZ) and operands read as zero (DAZ). They belong to a thread, and
`torch.set_flush_denormal` sets them in the thread that calls it, not in OpenMP's workers: another reason for one
core. They end with the thread: accountants still compute with gradual underflow.
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
# PyTorch splits elementwise work into parts of at least this size, one a thread (at::internal::GRAIN_SIZE).
_GRAIN = 32768


def flushed(work: Callable[[], T]) -> T:
    """`work()` in a thread of its own, on one core, all of whose arithmetic flushes subnormals to zero.

    What `work` raises is raised here. An interrupt of the caller stops it too, and is raised once it has ended.
    PyTorch's thread-local state (grad mode, autocast) is that of a new thread. Sums of tiny probabilities, as in
    accounting, must not run here.

    Raises:
        PrivacyError: the machine cannot flush; `work` was not called.
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
        # The process's number is for new threads; a running thread keeps its own.
        torch.set_num_threads(threads)
    thread.join()
    return outcome.result()


def _flush() -> None:
    """One core and both modes for this thread; refuse if it does not have them."""
    # The first call in a thread adopts the process's number: made before the next line, which it would override.
    torch.get_num_threads()
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True) or not flushes():
        raise PrivacyError(
            "subnormal numbers: expected this processor to flush them to zero, else the duration of private training "
            "would reveal values; it does not, so private training is refused on it"
        )


def flushes() -> bool:
    """Whether this thread and all its OpenMP workers flush, in elementwise and in matrix kernels.

    The tensors are large enough for every thread to get a part.
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
