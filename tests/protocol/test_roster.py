"""Signed rosters: what is taken for one, whoever has signed it, and what secure aggregation makes of it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from support.federation import COMPANIES, Federation

from fedblocks.errors import InputError
from fedblocks.privacy.secure_aggregation import Identity, Roster
from fedblocks.protocol import signed_text
from fedblocks.protocol.federation.request import Request
from fedblocks.protocol.identity import load_member, load_roster, load_signed_roster
from fedblocks.protocol.roster import SignedRoster
from fedblocks.protocol.transport import OwnCertificate

ODD: list[Any] = [
    None, 0, -1, 2**70, 1.5, float("nan"), "", "x" * 5000, "\x1b[31m", "é", [], {}, {"a": 1}, True, [[]],
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "00" * 32, "ff" * 32,
]  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = Federation.at(tmp_path_factory.mktemp("federation"))
    made.ask()
    made.provision()
    made.all_installed()
    return made


def bent(tables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tables with each value, at any depth, left out or replaced by each odd one."""

    def places(table: dict[str, Any], *before: str) -> Iterator[tuple[str, ...]]:
        for key, value in table.items():
            yield (*before, key)
            if isinstance(value, dict):
                yield from places(value, *before, key)

    for path in list(places(tables)):
        for value in ODD:
            changed = copy.deepcopy(tables)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if value is None:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            yield changed


def tables_of(kind: str, content: bytes) -> dict[str, Any]:
    return tomllib.loads(signed_text.opened(kind, content, "x").text)


def test_nothing_that_somebody_signs_is_more_than_refused(federation: Federation) -> None:
    """Rosters and requests of strangers are read before it is known whose they are; would catch a traceback."""
    stranger, refused, taken = Identity.generate(), 0, 0
    for tables in bent(tables_of("roster", federation.roster.read_bytes())):
        content = signed_text.sign("roster", tomli_w.dumps(tables), stranger).content
        try:
            found = SignedRoster.parse(content, "x")
            assert found.roster.members.keys() == found.certificates.keys()
            taken += 1
        except InputError:
            refused += 1
    assert refused > 10 * taken
    mine = Identity(bytes.fromhex((federation.home("acme") / "identity.key").read_text()))
    for tables in bent(tables_of("request", (federation.office / "requests/acme.request").read_bytes())):
        with pytest.raises(InputError):
            Request.parse(signed_text.sign("request", tomli_w.dumps(tables), mine).content, "x")


def test_a_certificate_comes_alone(federation: Federation) -> None:
    """Text around it would be loaded by the coordinator with everybody else's."""
    tables = tables_of("request", (federation.office / "requests/acme.request").read_bytes())
    mine = Identity(bytes.fromhex((federation.home("acme") / "identity.key").read_text()))
    for more in (
        "-----BEGIN CERTIFICATE-----\n",
        "text\n",
        OwnCertificate.create("acme").certificate.decode(),
    ):
        for text in (tables["certificate"] + more, more + tables["certificate"]):
            changed = signed_text.sign("request", tomli_w.dumps(tables | {"certificate": text}), mine)
            with pytest.raises(InputError, match="certificate"):
                Request.parse(changed.content, "x")


@pytest.mark.parametrize("kind", ["kit", "request"])
def test_a_text_signed_as_one_kind_is_none_of_another(federation: Federation, kind: str) -> None:
    """Even with the first line changed to fit."""
    text = signed_text.opened("roster", federation.roster.read_bytes(), "x").text
    content = signed_text.sign(kind, text, federation.identity).content
    with pytest.raises(InputError, match=f"is a {kind}, expected a roster"):
        SignedRoster.parse(content, "x")
    with pytest.raises(InputError, match="altered"):
        SignedRoster.parse(content.replace(f"fedblocks {kind}".encode(), b"fedblocks roster", 1), "x")


def test_a_company_s_signatures_for_sums_sign_no_roster(federation: Federation) -> None:
    """The identity key signs requests, too: no statement of secure aggregation is the beginning of such a text."""
    member = load_member(federation.home("acme"), "acme")
    signature = member.sign("channel key", b"run", bytes(32), bytes(32))
    first = (
        f"# fedblocks request, signed with Ed25519: {member.roster.members['acme'].hex()} {signature.hex()}\n"
    )
    statement = member.roster.statement("channel key", "acme", b"run", bytes(32), bytes(32))
    with pytest.raises(InputError, match="altered"):
        signed_text.opened("request", first.encode() + statement, "x")
    assert not statement.startswith(b"fedblocks signed text")


def test_a_signed_roster_has_the_digest_of_one_written_by_hand(
    federation: Federation, tmp_path: Path
) -> None:
    """Statements are bound to names and identities alone, so a renewed roster ends no run."""
    signed = load_signed_roster(federation.home("acme") / "roster.toml")
    assert signed is not None
    lines = [f'{name} = "{signed.content.companies[name]}"' for name in COMPANIES]
    path = tmp_path / "roster.toml"
    path.write_text("\n".join(["[companies]", *lines]))
    assert load_signed_roster(path) is None
    assert load_roster(path).digest == Roster(dict(signed.roster.members)).digest == signed.roster.digest
    renewed = SignedRoster.sign(signed.content.model_copy(update={"version": 7}), federation.identity)
    assert renewed.roster.digest == signed.roster.digest
    assert renewed.fingerprint != signed.fingerprint
