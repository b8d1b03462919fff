"""What a mechanism did, in a sentence: made from the events that a ledger holds, never from a template that assumes a
setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...privacy.events import (
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    NoNoise,
    SharedSkellamSteps,
    SkellamSteps,
    TruncatedGaussianSteps,
)


def mechanism_sentences(events: Iterable[Event]) -> tuple[str, ...]:
    """One sentence for each kind of release, with how often it was made."""
    kinds: Counter[Event] = Counter()
    for event in events:
        kinds[event.step] += event.steps
    return tuple(sentence(step, steps) for step, steps in kinds.items())


def sentence(event: Event, steps: int) -> str:
    """`steps` times `event`, which is a single step."""
    times = f"{steps:,} noisy sum{'' if steps == 1 else 's'}"
    if isinstance(event, (GaussianSteps, TruncatedGaussianSteps)):
        capped = ""
        if isinstance(event, TruncatedGaussianSteps):
            capped = f", and of a batch above {event.batch_cap:,} the surplus is dropped at random"
        return (
            f"{times}. Each example joins a batch by chance, with probability {event.sampling_rate:g}, anew for "
            f"every sum (Poisson sampling){capped}; its gradient is clipped, and Gaussian noise of "
            f"{event.noise_multiplier:.4g} times the clip is added to every value of the sum."
        )
    if isinstance(event, EpochGaussian):
        return (
            f"{times} that any one example enters, one in each pass over the data: every example is in exactly one "
            "batch of a pass, drawn at random, and no credit is taken for that secrecy; its gradient is clipped, and "
            f"Gaussian noise of {event.noise_multiplier:.4g} times the clip is added to every value of the sum."
        )
    if isinstance(event, FixedSizeGaussianSteps):
        return (
            f"{times}. Each batch is {event.batch_size:,} of {event.examples:,} examples, drawn without replacement; "
            f"gradients are clipped, and Gaussian noise of {event.noise_multiplier:.4g} times the clip is added to "
            "every value of the sum."
        )
    if isinstance(event, SkellamSteps):
        shares = ""
        if isinstance(event, SharedSkellamSteps):
            shares = (
                f" The account counts on {event.shares} of these shares, and on none of "
                f"{event.colluders} further compan{'y' if event.colluders == 1 else 'ies'}."
            )
        return (
            f"{times} over all companies. Each example joins a batch by chance, with probability "
            f"{event.sampling_rate:g} (Poisson sampling); its gradient is clipped and rounded to whole numbers, and "
            "every company adds a share of Skellam noise, so that only the opened sum has all of it: a single "
            f"company's update, were it seen, has its share alone.{shares}"
        )
    assert isinstance(event, NoNoise)
    return f"{steps:,} sum{'' if steps == 1 else 's'} without any noise: nothing bounds what they tell."
