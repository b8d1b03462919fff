"""Secure aggregation: the coordinator learns the sum of the companies' vectors, and no vector.

Double masking after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017, Fig. 4 with its steps for an active server, on the full graph, as state machines that
know no transport. `session` says what is summed, `identity` who may take part, `company` and `aggregation` are
the two sides, `messages` what passes between them, and `wire`, `keys`, `masks`, `packing`, `shamir` what they
are made of. The wire is specified byte by byte in `privacy/secure_aggregation.md`.

What holds. Exact in the integers mod 2^bits, with dropouts in every phase, as long as `threshold`
companies answer. With t > 2n/3, no coordinator that works with fewer than n/3 of the companies gets
seed and mask key of one other company, and no sum over fewer than a company's own minimum of companies
of its own roster: mask keys and channel keys are signed by identities that each company has pinned,
and shares leave only for a survivor set that t companies have signed.

What does not. A company that sends false shares or residues can spoil a sum (it is noticed for shares,
not for residues) but learns nothing by it. The sum itself is not protected here.

Every refusal is a ProtocolError with one of these codes:

    malformed      bytes that are no message of the expected kind
    bad_session    a field of the proposed session is out of its range
    not_in_roster  a name that the company, or the coordinator, has not pinned
    not_in_cohort  a company that has no part in the session, or not in this phase of it
    no_channel     the channel key of a cohort member is missing
    small_cohort   fewer companies than the company's own minimum
    low_threshold  a threshold of at most two thirds, or that the tolerated colluders can get round
    replay         the company has begun this session before, or taken this step of it
    wrong_session  a message of another session
    wrong_phase    a step out of order, or a second time
    duplicate      a second message of the same company
    bad_key        a public key that is unusable, or was replaced
    bad_signature  not signed by the pinned identity, or over something else
    bad_share      a share that was altered, is missing, or does not restore what was shared
    bad_vector     a vector of the wrong type, length or range
    bad_survivors  a survivor set that the company cannot stand by, or an answer for another set
    second_set     a survivor set that differs from the one the company has signed
    too_few        fewer adverts, vectors, signatures or answers than the threshold
"""

from .aggregation import Aggregation
from .company import SMALLEST_COHORT, CompanySession
from .identity import Identity, Member, Roster
from .keys import ChannelKey, ChannelKeys
from .messages import Advert, Confirmation, Confirmations, Survivors, UnmaskShares
from .session import Session, lowest_threshold

__all__ = [
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
    "lowest_threshold",
]
