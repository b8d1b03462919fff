"""Secure aggregation: the coordinator learns the sum of the companies' vectors, and no vector.

Double masking after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017, Fig. 4 with its steps for an active server, on the full graph, as state machines that
know no transport. `session` says what is summed, `identity` who may take part, `company` and `aggregation` are
the two sides, `messages` what they exchange, and `wire`, `keys`, `masks`, `packing`, `shamir` the building
blocks. The wire is specified byte by byte in `privacy/secure_aggregation.md`.

Guaranteed. Sums are exact in the integers mod 2^bits, with dropouts in every phase, as long as `threshold`
companies answer. With t > 2n/3, a coordinator that colludes with fewer than n/3 of the companies gets neither
both seed and mask key of another company nor a sum over fewer companies of a company's roster than that company's
minimum: mask keys and channel keys are signed by identities that each company has pinned, and shares leave only for
a survivor set that t companies have signed.

Not guaranteed. A company that sends false shares or residues can spoil a sum (false shares are noticed, false
residues are not) but learns nothing by it. The sum itself is not protected here.

Every refusal is a ProtocolError with one of these codes:

    malformed      bytes that are no message of the expected kind
    bad_session    a field of the proposed session is out of its range
    not_in_roster  a name that the company, or the coordinator, has not pinned
    not_in_cohort  a company that takes no part in the session, or in this phase of it
    no_channel     the channel key of a cohort member is missing
    small_cohort   fewer companies than the company's own minimum
    low_threshold  a threshold of at most two thirds, or too low for the tolerated colluders
    replay         the company has begun this session, or taken this step of it, before
    wrong_session  a message of another session
    wrong_phase    a step out of order, or a second time
    duplicate      a second message of the same company
    bad_key        a public key that is unusable, or was replaced
    bad_signature  not signed by the pinned identity, or over something else
    bad_share      a share that was altered, is missing, or does not restore what was shared
    bad_vector     a vector of the wrong type, length or range
    bad_survivors  a survivor set that the company cannot confirm, or an answer for another set
    second_set     a survivor set that differs from the one the company has signed
    too_few        fewer adverts, vectors, signatures or answers than the threshold
"""

from .aggregation import Aggregation
from .company import SMALLEST_COHORT, CompanySession
from .identity import Identity, Member, Roster
from .keys import ChannelKey, ChannelKeys
from .messages import Advert, Confirmation, Confirmations, Survivors, UnmaskShares
from .pairs import computed_once
from .session import Session, lowest_threshold
from .wire import MAX_COHORT

__all__ = [
    "MAX_COHORT",
    "SMALLEST_COHORT",
    "Advert",
    "Aggregation",
    "ChannelKey",
    "ChannelKeys",
    "CompanySession",
    "Confirmation",
    "Confirmations",
    "Identity",
    "Member",
    "Roster",
    "Session",
    "Survivors",
    "UnmaskShares",
    "computed_once",
    "lowest_threshold",
]
