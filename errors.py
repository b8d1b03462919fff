"""One exception tree for the package.

    FedblocksError
    ├── InputError            what the user gave cannot be used; nothing was written (exit code 2)
    ├── RunError              a run folder is missing, incomplete or already finished (exit code 2)
    │   └── DamagedFile       a file that fedblocks wrote is not whole any more
    ├── PrivacyError          a guarantee would be broken
    │   ├── BudgetExceeded    a release would pass the company's epsilon ceiling
    │   ├── PolicyRefusal     a plan breaks a rule of the company's policy; `rule` is the rule's name
    │   ├── LedgerError       the ledger is damaged or does not fit the run
    │   └── UnsupportedLayer  a parameter whose per-example gradient cannot be had
    └── ProtocolError         a message breaks the secure aggregation protocol; `code` says how

Only `code` may leave a company; the text of an exception stays in its own log. Whether its rules, its budget or its
ledger refused has one code: the difference would tell a coordinator what the company has spent elsewhere. A join that
has been counted is refused with that code whatever raised it, for where the checks stopped tells the same.
"""


class FedblocksError(Exception):
    """Base of every error that fedblocks raises on purpose."""

    code = "internal"


class InputError(FedblocksError):
    """What the user gave cannot be used: names the field, the value and the rule."""

    code = "bad_input"

    def __init__(self, field: str, value: object, rule: str) -> None:
        shown = repr(value)
        if len(shown) > 80:  # the end of a path names the file
            shown = f"{shown[:37]}...{shown[-40:]}"
        super().__init__(f"{field}={shown}: {rule}")


class RunError(FedblocksError):
    """A run folder is missing, incomplete or not in a state for what was asked."""

    code = "bad_run"


class DamagedFile(RunError):
    """A file that fedblocks wrote is not whole any more; a company tells nobody that it was this fault."""

    code = "internal"


class PrivacyError(FedblocksError):
    """A privacy guarantee would be broken."""

    code = "privacy"


class BudgetExceeded(PrivacyError):
    """A release would pass the company's epsilon ceiling; nothing was charged."""


class PolicyRefusal(PrivacyError):
    """A plan breaks the rule `rule`, a field of the company's policy."""

    def __init__(self, rule: str, text: str) -> None:
        self.rule = rule
        super().__init__(text)


class LedgerError(PrivacyError):
    """The ledger is damaged or does not fit the run."""


class UnsupportedLayer(PrivacyError):
    """A trainable parameter whose per-example gradient cannot be had."""

    code = "unsupported_layer"


class ProtocolError(FedblocksError):
    """A message breaks the secure aggregation protocol.

    `code` is one of the fixed words of `privacy.secure_aggregation`; it may cross the wire,
    the text may not.
    """

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {text}")
