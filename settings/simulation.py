"""What only a run with invented companies has: their data, their failures, and the audit of what they released."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..blocks.settings import Part, require
from .run import CohortSettings, DataSource, PublicDataSettings, RunSettings

# How a simulation's messages travel, and where its companies compute; no part of the settings, since no result
# depends on it.
Transport = Literal["grid", "grpc"]
Engine = Literal["threads", "processes", "ray"]


CompanyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class PrivateSource(DataSource):
    """One source that is dealt out to the companies, or in `sources` each company's own, by the company's name.

    With `sources` the companies are theirs (`companies.count` follows), and `source` is not read.
    """

    source: str = ""
    sources: dict[CompanyName, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> Self:
        require(
            bool(self.source or self.sources), "source", self.source, "name a source, or sources by company"
        )
        return self


class DataSettings(PublicDataSettings):
    """Public data for the coordinator, private data to be dealt to the companies."""

    private: PrivateSource = PrivateSource(source="mnist-5k")


class DropoutSettings(Part):
    """Injected failures: at every round each company is lost with probability `rate` in phase `phase`."""

    rate: float = Field(0.0, ge=0, lt=1)
    phase: Literal["keys", "train", "confirm", "unmask"] = "train"


class CompanySettings(CohortSettings):
    """Simulated companies; `alpha` is the Dirichlet concentration of their label shares."""

    alpha: float = Field(1.0, gt=0)
    holdout: float = Field(0.2, gt=0, lt=1)
    examples: int | None = Field(
        None,
        ge=10,
        le=1_000_000,
        description="each company draws so many for itself, held-out ones among them, and one example may be at "
        "several companies: for more companies than the data could be dealt to; none: each goes to one",
    )
    held_out: float = Field(
        0.1, gt=0, le=0.5, description="with [evaluation]: a company's own share that it never trains on"
    )
    dropout: DropoutSettings = DropoutSettings()


class AuditSettings(Part):
    """Of the leakage audit, which needs the companies' own examples: `minutes` for all attacks together, `block`
    none means all."""

    minutes: float = Field(5.0, gt=0, le=1e4)
    block: int | None = Field(None, ge=0)


class SimulationSettings(RunSettings):
    """Everything that decides a run on one machine."""

    data: DataSettings = DataSettings()
    companies: CompanySettings = CompanySettings()
    workers: int = Field(2, ge=1, le=256, description="companies simulated at once, a core each")
    protocol: Literal["on", "off"] = Field(
        "on",
        description="off, for studies of utility alone: the same training without keys, masks, messages and ledgers; "
        "no guarantee is accounted at companies",
    )
    audit: AuditSettings = AuditSettings()

    @model_validator(mode="before")
    @classmethod
    def _counts_sources(cls, raw: Any) -> Any:
        """Companies that bring data of their own are as many as their sources."""
        try:
            count = len(raw["data"]["private"]["sources"])
        except (KeyError, TypeError):
            return raw
        companies = raw.get("companies", {})
        return (
            raw | {"companies": companies | {"count": count}}
            if count and isinstance(companies, dict)
            else raw
        )

    @model_validator(mode="after")
    def _audits(self) -> Self:
        b, trained = self.audit.block, self.training.trained(self.model.blocks)
        blocks = ", ".join(map(str, trained))
        require(b is None or b in trained, "audit.block", b, f"the run trains the blocks {blocks}")
        return self

    @model_validator(mode="after")
    def _asks_companies(self) -> Self:
        rule = 'needs protocol = "on": what companies say of their held-out examples is paid for in their ledgers'
        require(self.protocol == "on" or self.evaluation is None, "evaluation", "a table", rule)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings with the protocol keep the digests that they had before there were any without."""
        found: dict[str, Any] = dump(self)
        if self.protocol == "on":
            found.pop("protocol", None)
        return found
