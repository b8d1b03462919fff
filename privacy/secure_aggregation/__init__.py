"""Secure aggregation: the coordinator learns the sum of the companies' vectors, and no vector.

Double masking after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017, Fig. 4, on the full graph, as state machines that know no transport. `session` says
what is summed, `company` and `aggregation` are the two sides, `messages` what passes between them, and
`wire`, `keys`, `masks`, `shamir` what they are made of.

What holds. Exact in the integers mod 2^bits, with dropouts in every phase, as long as `threshold`
companies answer. With t > 2n/3, no coordinator that works with fewer than n/3 of the companies gets
seed and mask key of one other company, provided that the roster of channel keys is genuine.

What does not. Identity signatures are not part of this version: the roster is trusted as handed
over, and the survivors do not compare the set they were shown, so the minimum cohort binds a coordinator
that shows all of them the same set. A company that sends false shares or residues can spoil a sum (it is
noticed for shares, not for residues) but learns nothing by it. The sum itself is not protected here.

Every refusal is a ProtocolError with one of these codes:

    malformed      bytes that are no message of the expected kind
    bad_session    a field of the proposed session is out of its range
    not_in_cohort  a company that has no part in the session, or not in this phase of it
    no_channel     the roster lacks the channel key of a cohort member
    small_cohort   fewer companies than the company's own minimum
    low_threshold  a threshold that is not above two thirds of the cohort
    replay         the company has begun this session before
    wrong_session  a message of another session
    wrong_phase    a step out of order, or a second time
    duplicate      a second message of the same company
    bad_key        a public key that is unusable, or was replaced
    bad_share      a share that was altered, is missing, or does not restore what was shared
    bad_vector     a vector of the wrong type, length or range
    bad_survivors  a survivor set that the company cannot answer, or an answer for another set
    too_few        fewer adverts, vectors or answers than the threshold
"""

from .aggregation import Aggregation
from .company import SMALLEST_COHORT, CompanySession
from .keys import ChannelKeys
from .messages import Advert, Survivors, UnmaskShares
from .session import Session, lowest_threshold

__all__ = [
    "SMALLEST_COHORT",
    "Advert",
    "Aggregation",
    "ChannelKeys",
    "CompanySession",
    "Session",
    "Survivors",
    "UnmaskShares",
    "lowest_threshold",
]
