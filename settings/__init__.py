"""Settings of a run: TOML presets, validated before anything is spent.

A preset is read, overrides (`--set privacy.epsilon=3`) are laid over it, and the result is frozen.
`Plan` is the part of the settings that a coordinator offers to companies: each company checks it against
its own policy and would refuse anything its own rules do not allow.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError

T = TypeVar("T", bound=BaseModel)

# In units of the sensitivity: less counts as none, its epsilon is in the thousands, and more drowns every update.
LEAST_NOISE, MOST_NOISE = 0.01, 1e6
MOST_COMPANIES = 10_000

# How a simulation's messages travel; no part of the settings, since no result depends on it.
Transport = Literal["grid", "grpc"]


def _rule(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{field}={value!r}: {rule}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, raw: Any) -> Any:
        """TOML has no null: "none" stands for it."""
        if not isinstance(raw, dict):
            return raw
        return {key: None if value == "none" else value for key, value in raw.items()}


class TransformerSettings(_Part):
    """What all families share: `layers` layers cut into `blocks` blocks of `layers / blocks`.

    `features`: "raw", every block reads the clean input through its own embedding alone; "prefix", it also
    reads what the blocks before it, frozen, have made of that input.
    """

    hidden_size: int = Field(32, ge=4, le=8192)
    layers: int = Field(6, ge=1, le=256)
    blocks: int = Field(3, ge=1, le=64)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, ge=0.25, le=16)
    features: Literal["raw", "prefix"] = "raw"

    @model_validator(mode="after")
    def _cuts(self) -> Self:
        _rule(self.hidden_size % self.heads == 0, "heads", self.heads, "must divide hidden_size")
        _rule(self.layers % self.blocks == 0, "layers", self.layers, "must be a multiple of blocks")
        return self

    @property
    def kind(self) -> DataKind:
        """The examples that this model reads."""
        raise NotImplementedError


class DataKind(_Part):
    """Shapes of one example; `classes` is the number of values a whole-number field may take, none: real."""

    inputs: tuple[int, ...]
    input_classes: int | None = None
    targets: tuple[int, ...]
    target_classes: int | None = None


class _ImageSettings(TransformerSettings):
    image_size: int = Field(8, ge=2, le=512)
    channels: int = Field(1, ge=1, le=16)
    patch_size: int = Field(2, ge=1)
    classes: int = Field(10, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _rule(self.image_size % self.patch_size == 0, "patch_size", self.patch_size, "must divide image_size")
        return self

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.channels, self.image_size, self.image_size)


class ViTSettings(_ImageSettings):
    """Image classifier: images in, label out."""

    family: Literal["vit"] = "vit"
    initializer_range: float = Field(0.02, gt=0, le=1, description="deviation of the weights at first")

    @model_validator(mode="after")
    def _table(self) -> Self:
        _rule(self.classes <= self.hidden_size, "classes", self.classes, "must not exceed hidden_size")
        return self

    @property
    def kind(self) -> DataKind:
        return DataKind(inputs=self.image_shape, input_classes=None, targets=(), target_classes=self.classes)


class DiTSettings(_ImageSettings):
    """Class-conditional image generator: class in, image out."""

    family: Literal["dit"] = "dit"

    @property
    def kind(self) -> DataKind:
        return DataKind(inputs=(), input_classes=self.classes, targets=self.image_shape, target_classes=None)


class _TextSettings(TransformerSettings):
    """`tokenizer`: ascii (97 characters), text8 (27), bytes (256), or a tokenizer.json on disk."""

    sequence_length: int = Field(64, ge=2, le=65536)
    tokenizer: str = "ascii"
    vocabulary: int = Field(97, ge=2, le=1_000_000)

    @model_validator(mode="after")
    def _known(self) -> Self:
        size = {"ascii": 97, "text8": 27, "bytes": 256}.get(self.tokenizer, self.vocabulary)
        rule = f"the {self.tokenizer} tokenizer has {size} tokens"
        _rule(self.vocabulary == size, "vocabulary", self.vocabulary, rule)
        width = self.hidden_size // self.heads
        _rule(width % 2 == 0, "heads", self.heads, "rotary positions need an even hidden_size / heads")
        return self

    @property
    def kind(self) -> DataKind:
        tokens = (self.sequence_length,)
        return DataKind(
            inputs=tokens, input_classes=self.vocabulary, targets=tokens, target_classes=self.vocabulary
        )


class ARLanguageModelSettings(_TextSettings):
    """Autoregressive language model in the style of Llama."""

    family: Literal["ar-lm"] = "ar-lm"


class MaskedLanguageModelSettings(_TextSettings):
    """Masked-diffusion language model."""

    family: Literal["masked-lm"] = "masked-lm"


class RecurrentLanguageModelSettings(_TextSettings):
    """Looped language model: one block of prelude, core and coda, whose core stands for many layers."""

    family: Literal["recurrent-lm"] = "recurrent-lm"
    blocks: int = Field(1, ge=1, le=1)
    recurrences: int = Field(4, ge=1, le=128)


class ForecasterSettings(TransformerSettings):
    """Probabilistic forecaster: the last `context_length` values in, `horizon` values out, per channel."""

    family: Literal["forecaster"] = "forecaster"
    context_length: int = Field(96, ge=2, le=65536)
    horizon: int = Field(24, ge=1, le=8192)
    channels: int = Field(1, ge=1, le=4096)
    patch_size: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, length in (("context_length", self.context_length), ("horizon", self.horizon)):
            _rule(
                length % self.patch_size == 0, "patch_size", self.patch_size, f"must divide {name}={length}"
            )
        return self

    @property
    def kind(self) -> DataKind:
        return DataKind(
            inputs=(self.channels, self.context_length), input_classes=None,
            targets=(self.channels, self.horizon), target_classes=None,
        )  # fmt: skip


ModelSettings = Annotated[
    ViTSettings
    | DiTSettings
    | ARLanguageModelSettings
    | MaskedLanguageModelSettings
    | RecurrentLanguageModelSettings
    | ForecasterSettings,
    Field(discriminator="family"),
]


FAMILY_NAMES = ("vit", "dit", "ar-lm", "masked-lm", "recurrent-lm", "forecaster")


class NoiseSettings(_Part):
    """Denoising noise of the blocks (not the privacy noise); names as in EDM.

    `partition`: "equi-probability" (the paper's), "uniform" (equal steps of log sigma), "uniform-linear", or
    "equi-information" (equal shares of what is to be learnt; refitted to the measured loss curve every
    `refit_every` steps of pretraining where no closed form exists). `edges`, if given, are used as they are.
    """

    P_mean: float = Field(1.0, ge=-6, le=6)
    P_std: float = Field(1.2, ge=0.1, le=5)
    sigma_min: float = Field(0.002, ge=1e-6, le=1e6)
    sigma_max: float = Field(80.0, ge=1e-6, le=1e6)
    sigma_data: float = Field(0.5, ge=1e-3, le=1e3)
    rate_min: float = Field(1e-3, ge=1e-6, lt=1, description="lowest masking rate of a masked language model")
    partition: Literal["equi-probability", "uniform", "uniform-linear", "equi-information"] = (
        "equi-probability"
    )
    edges: tuple[float, ...] | None = None
    refit_every: int = Field(100, ge=1)
    overlap: float = Field(0.05, ge=0, lt=1)
    weight: Literal["unit", "edm"] = "unit"

    @model_validator(mode="after")
    def _ordered(self) -> NoiseSettings:
        _rule(self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "must be below sigma_max")
        law = NormalDist(self.P_mean, self.P_std)
        inside = law.cdf(math.log(self.sigma_max)) - law.cdf(math.log(self.sigma_min))
        _rule(inside > 0.5, "P_mean", self.P_mean, "sigma_min to sigma_max must hold most of the law")
        return self


class DataSource(_Part):
    """A built-in set, or a path on disk; see `client/data/` for the formats.

    `label` names the label column of a table of images, `columns` the value columns of a table of time
    series (none means all numeric ones).
    """

    source: str
    label: str = "label"
    columns: tuple[str, ...] | None = None


class DataSettings(_Part):
    """Public data for the coordinator, private data to be dealt to the companies."""

    public: DataSource = DataSource(source="digits")
    private: DataSource = DataSource(source="mnist-5k")
    match_contrast: bool = True
    test_examples: int = Field(
        2000, ge=1, description="of each held-out set at most so many are evaluated, spread evenly over it"
    )


class PretrainingSettings(_Part):
    """Public pretraining of all blocks. `schedule`: every step trains all blocks ("together"), one at random
    ("random"), or the blocks one after another, `steps` each ("sequential"), each starting from the weights of
    the one before ("stacked")."""

    steps: int = Field(500, ge=0)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["together", "random", "sequential", "stacked"] = "together"
    noise_draws: int = Field(1, ge=1, le=64)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0 means none")
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    folder: str | None = Field(
        None, description="take the model that `fedblocks pretrain` left in this folder, and train nothing"
    )


class DropoutSettings(_Part):
    """Injected failures: at every round each company is lost with probability `rate` in phase `phase`."""

    rate: float = Field(0.0, ge=0, lt=1)
    phase: Literal["keys", "train", "confirm", "unmask"] = "train"


class CompanySettings(_Part):
    """Simulated companies; `alpha` is the Dirichlet concentration of their label shares."""

    count: int = Field(5, ge=1, le=100)
    alpha: float = Field(1.0, gt=0)
    holdout: float = Field(0.2, gt=0, lt=1)
    dropout: DropoutSettings = DropoutSettings()


_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(_Part):
    """What every company does in a round, and how the coordinator applies the sum."""

    rounds: int = Field(60, ge=1, le=1_000_000)
    assignment: Literal["sequential", "parallel", "all"] = "sequential"
    interface: bool = Field(False, description="also train the blocks' embeddings and readouts")
    local_steps: int = Field(1, ge=1, le=10_000)
    local_learning_rate: float = Field(1.0, ge=1e-6, le=1e4)
    sampling_rate: float = Field(0.5, ge=1e-6, le=1)
    expected_batch_size: float = Field(
        400.0,
        ge=1,
        le=1e9,
        description="public divisor of every company's gradient sums, so that sizes stay private",
    )
    batches: Literal["poisson", "epochs"] = Field(
        "poisson",
        description="how a release's batches are drawn: every example joins each of them by chance, or belongs to "
        "one of 1/sampling_rate groups that take turns, which costs more privacy",
    )
    noise_bands: int = Field(
        1,
        ge=1,
        le=64,  # a step keeps so many vectors of noise
        description="epochs only: a step's noise is partly taken back over so many steps; 1 means never",
    )
    noise_draws: int = Field(2, ge=1, le=64)
    server_optimizer: Literal["fedavg", "fedadam"] = "fedadam"
    server_learning_rate: float = Field(0.01, gt=0, le=1e4)
    server_betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    evaluate_every: int = Field(1, ge=1)
    message_timeout: float = Field(600.0, gt=0, le=1e6, description="seconds to wait for a phase's replies")

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch: how many groups its examples are dealt into."""
        return round(1 / self.sampling_rate)

    @model_validator(mode="after")
    def _whole_epochs(self) -> TrainingSettings:
        if self.batches == "epochs":
            steps = self.epoch_steps
            rule = (
                f"must be a multiple of the {steps} steps of an epoch, of which a part costs as much as all"
            )
            _rule(self.local_steps % steps == 0, "local_steps", self.local_steps, rule)
            _rule(
                self.noise_bands <= steps,
                "noise_bands",
                self.noise_bands,
                f"must be at most {steps}, an epoch",
            )
        else:
            _rule(self.noise_bands == 1, "noise_bands", self.noise_bands, 'needs batches = "epochs"')
        return self

    def releases(self, blocks: int) -> int:
        """Updates of one company over the run: one a round, or with "all" one a round and block."""
        return self.rounds * (blocks if self.assignment == "all" else 1)


class PrivacySettings(_Part):
    """Example-level differential privacy of each company, add/remove adjacency.

    `epsilon` none needs `i_accept_no_dp = true`; the report then opens with that.
    `noise_multiplier` is calibrated from epsilon when it is not given.

    `mode`: "local", every company adds its full noise and needs to trust nobody; "secure_step", every step's sum
    is opened alone and companies add shares of one noise. The shares suffice while at most `dropouts` companies
    are missing and `colluders` tell the coordinator theirs, or add none.
    """

    mode: Literal["local", "secure_step"] = "local"
    dropouts: int = Field(0, ge=0, le=MOST_COMPANIES)
    colluders: int = Field(1, ge=0, le=MOST_COMPANIES)
    epsilon: float | None = Field(8.0, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=1e-6, le=1e6)
    clipping: Literal["flat", "per-layer", "automatic"] = "flat"
    clip_quantile: float | None = Field(
        None, gt=0, lt=1, description="let the clip follow this quantile of norms over a round's local steps"
    )
    noise_multiplier: float | None = Field(None, ge=LEAST_NOISE, le=MOST_NOISE)
    company_clip: float | None = Field(None, ge=1e-6, le=1e9)
    i_accept_no_dp: bool = False

    @model_validator(mode="after")
    def _accepted(self) -> PrivacySettings:
        _rule(
            self.epsilon is not None or self.i_accept_no_dp,
            "epsilon",
            self.epsilon,
            "a run without differential privacy needs i_accept_no_dp = true",
        )
        _rule(
            self.epsilon is not None or self.noise_multiplier is None,
            "noise_multiplier",
            self.noise_multiplier,
            "needs an epsilon to be accounted against",
        )
        return self


class SecureAggregationSettings(_Part):
    """`threshold` none means the smallest allowed, floor(2n/3) + 1.

    `bits` none means 22 (see `Plan.bits`), or for shares of one noise as few as its levels fit in, up to 32.
    """

    minimum_cohort: int = Field(3, ge=3, le=MOST_COMPANIES)
    threshold: int | None = Field(None, ge=2, le=MOST_COMPANIES)
    bits: int | None = Field(None, ge=16, le=32)


class AuditSettings(_Part):
    """Budget of the leakage audit; `block` none means the last one trained."""

    targets: int = Field(6, ge=2)
    aggregates: int = Field(4, ge=1)
    block: int | None = Field(None, ge=0)


class InfluenceSettings(_Part):
    """Whether the coordinator looks, every round, at what each group's sum does to the model on public data.

    A group is flagged where the public metric would be better without its sum by more than `tolerance`, a share
    of the metric; "discard" also leaves it out.
    """

    leave_group_out: Literal["off", "flag", "discard"] = "off"
    tolerance: float = Field(0.1, gt=0)

    @property
    def discards(self) -> bool:
        return self.leave_group_out == "discard"


class Settings(_Part):
    """Everything that decides a run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    seed: int = Field(0, ge=0, lt=2**57)  # a pretrained block's own is 64 times that
    device: str = "cpu"
    workers: int = Field(2, ge=1, le=256, description="companies simulated at once, a core each")
    model: ModelSettings = ViTSettings()
    noise: NoiseSettings = NoiseSettings()
    data: DataSettings = DataSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    companies: CompanySettings = CompanySettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    secure_aggregation: SecureAggregationSettings = SecureAggregationSettings()
    influence: InfluenceSettings = InfluenceSettings()
    audit: AuditSettings = AuditSettings()

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        from ..privacy.secure_aggregation import lowest_threshold

        _one_clip_for_bands(self.training, self.privacy.clip_quantile)
        n, least = self.companies.count, self.secure_aggregation.minimum_cohort
        _rule(n >= least, "companies.count", n, f"must reach secure_aggregation.minimum_cohort={least}")
        t = self.secure_aggregation.threshold
        group = self.smallest_group
        colluders = self.privacy.colluders
        _rule(colluders < group, "privacy.colluders", colluders, f"sums are of {group} companies")
        floor = lowest_threshold(n, colluders)
        _rule(t is None or floor <= t <= n, "secure_aggregation.threshold", t, f"expected {floor} to {n}")
        if self.privacy.mode == "secure_step":
            steps, dropouts = self.training.local_steps, self.privacy.dropouts
            _rule(
                steps == 1, "training.local_steps", steps, "must be 1: shares of noise protect single steps"
            )
            batches = self.training.batches
            _rule(batches == "poisson", "training.batches", batches, "needs mode local")
            q = self.privacy.clip_quantile
            _rule(q is None, "privacy.clip_quantile", q, "needs mode local: sums of shares have one clip")
            rule = f"sums are of {group} companies, of which privacy.colluders={colluders} are tolerated"
            _rule(dropouts + colluders < group, "privacy.dropouts", dropouts, rule)
            needed = group - dropouts
            _rule(t is None or t >= needed, "secure_aggregation.threshold", t, f"expected {needed} or more")
        b = self.audit.block
        _rule(
            b is None or b < self.model.blocks, "audit.block", b, f"the model has {self.model.blocks} blocks"
        )
        return self

    @property
    def largest_group(self) -> int:
        """How many companies a sum has at most."""
        return -(-self.companies.count // self._groups)

    @property
    def smallest_group(self) -> int:
        """How many companies a sum has where nobody is missing, at least."""
        return self.companies.count // self._groups

    @property
    def _groups(self) -> int:
        if self.training.assignment != "parallel":
            return 1
        return groups_of(self.companies.count, self.model.blocks, self.secure_aggregation.minimum_cohort)

    @property
    def total_steps(self) -> int:
        """DP-SGD steps of one company over the run."""
        return self.training.releases(self.model.blocks) * self.training.local_steps


def _one_clip_for_bands(training: TrainingSettings, clip_quantile: float | None) -> None:
    bands = training.noise_bands
    _rule(bands == 1 or clip_quantile is None, "training.noise_bands", bands, "needs a clip that stays")


def groups_of(companies: int, blocks: int, minimum_cohort: int) -> int:
    """Into how many groups `parallel` splits a cohort: one a block, as far as each stays large enough."""
    return min(blocks, companies // minimum_cohort)


class Plan(_Part):
    """What the coordinator offers: enough to train, mask and account; nothing about where data lies."""

    # Printable: it stands in logs and ledgers.
    run: str = Field(max_length=128, pattern=r"^( |[^\p{C}\p{Z}])+$")
    model: ModelSettings
    noise: NoiseSettings
    training: TrainingSettings
    delta: float = Field(gt=0, lt=1)
    max_grad_norm: float = Field(ge=1e-6, le=1e6)
    clipping: Literal["flat", "per-layer", "automatic"] = "flat"
    clip_quantile: float | None = Field(None, gt=0, lt=1)
    noise_multiplier: float = Field(ge=0, le=MOST_NOISE)
    company_clip: float = Field(ge=1e-6, le=1e9)
    mode: Literal["local", "secure_step"] = "local"
    dropouts: int = Field(0, ge=0, le=MOST_COMPANIES)
    colluders: int = Field(0, ge=0, le=MOST_COMPANIES)
    secure_aggregation: SecureAggregationSettings

    @model_validator(mode="after")
    def _single_steps(self) -> Plan:
        z = self.noise_multiplier
        _rule(z == 0 or z >= LEAST_NOISE, "noise_multiplier", z, f"expected 0 or at least {LEAST_NOISE}")
        _one_clip_for_bands(self.training, self.clip_quantile)
        if self.mode == "secure_step":
            steps = self.training.local_steps
            _rule(
                steps == 1, "training.local_steps", steps, "must be 1: shares of noise protect single steps"
            )
            batches = self.training.batches
            _rule(batches == "poisson", "training.batches", batches, "needs mode local")
            _rule(
                self.clip_quantile is None,
                "clip_quantile",
                self.clip_quantile,
                "sums of shares have one clip",
            )
        return self

    @property
    def private(self) -> bool:
        return self.noise_multiplier > 0

    @property
    def secure_step(self) -> bool:
        """Whether companies add shares of one noise; without any noise there is nothing to share."""
        return self.private and self.mode == "secure_step"

    @property
    def bits(self) -> int:
        """Bits a value takes in the secure sum.

        With 22 a company of ten has 2^21 / 10 levels on each side of zero for a coordinate as large as the whole
        clip; an update of 10^6 values has 190 of them in a standard deviation of its noise, and rounding adds some
        millionths to that noise's variance.
        """
        return self.secure_aggregation.bits or (32 if self.secure_step else 22)

    def threshold(self, cohort: int) -> int | None:
        """The smallest set that may be opened, where the plan has a say."""
        asked = self.secure_aggregation.threshold
        return max(asked or 0, cohort - self.dropouts) if self.secure_step else asked

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON; companies sign up to exactly this plan."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    def default_company_clip(self, parameters: int) -> float:
        """A bound that an honest update of `parameters` values passes but for a negligible chance.

        The norm of the noise over the local steps concentrates at z C sqrt(steps P); 1.1 covers its tail.
        """
        t = self.training
        if self.secure_step:  # the shares of noise are added to what has been bounded
            return 2 * t.local_learning_rate * self.max_grad_norm
        noise = self.noise_multiplier * self.max_grad_norm * math.sqrt(t.local_steps * parameters)
        # The sum of clipped gradients stays below this for batches of up to twice the expected size.
        signal = 2 * t.expected_batch_size * self.max_grad_norm * t.local_steps
        return t.local_learning_rate * (1.1 * noise + signal) / t.expected_batch_size


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("fedblocks.experiments.presets")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_settings(preset: str, overrides: Sequence[str] = ()) -> Settings:
    """Read a preset by name or a TOML file by path, and lay `key=value` overrides over it.

    Values are read as TOML where they are TOML, else as text: `--set name=mine`.
    """
    if preset in preset_names():
        text = resources.files("fedblocks.experiments.presets").joinpath(f"{preset}.toml").read_text("utf-8")
    elif Path(preset).is_file():
        text = read_text("preset", preset)
    else:
        raise InputError("preset", preset, f"no such preset or file; presets: {', '.join(preset_names())}")
    raw = parsed_toml("preset", preset, text)
    for override in overrides:
        _apply_override(raw, override)
    return validated(Settings, raw)


def read_text(field: str, path: str | Path) -> str:
    """A small text file; InputError naming `field` and path."""
    try:
        return Path(path).read_text("utf-8-sig")  # Windows' editors begin a file with a byte order mark
    except FileNotFoundError:
        raise InputError(field, str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, str(path), f"not a readable text file ({type(error).__name__})") from None


def parsed_toml(field: str, path: str | Path, text: str) -> dict[str, Any]:
    """The TOML that was read from `path`; InputError naming `field` and path."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(field, str(path), f"not valid TOML: {error}") from None


def validated(kind: type[T], raw: object) -> T:
    """Validate with pydantic and turn the first complaint into one line naming field, value and rule."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _readable(error) from None


def validated_json(kind: type[T], text: str) -> T:
    """As `validated`, from JSON text."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _readable(error) from None


def _readable(error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    # A union's tag is no field: model.vit.layers is model.layers.
    field = ".".join(str(part) for part in first["loc"] if part not in FAMILY_NAMES)
    if first["type"] == "value_error":  # raised by `_rule`: already names field, value and rule
        name, _, rest = str(first["ctx"]["error"]).partition("=")
        value, _, rule = rest.partition(": ")
        return InputError(f"{field}.{name}".lstrip("."), _literal(value), rule)
    rule = {"extra_forbidden": "unknown field"}.get(
        first["type"], first["msg"][:1].lower() + first["msg"][1:]
    )
    return InputError(field or "settings", first["input"], rule)


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip("'")


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError("--set", override, "expected key=value, as in --set privacy.epsilon=3")
    try:
        value: object = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError("--set", override, f"{parent} is a value, not a table")
    table[last] = value
