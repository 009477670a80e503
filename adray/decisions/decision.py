"""What is decided for a part: which model to deploy, with the evidence and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.results.measurements import Cost
from adray.results.saturation import Saturation
from adray.results.trial_names import part_name
from adray.thresholds import Promise, check_rate

DECIDED = "decided"
"""One candidate is better than all others for certain."""
ONLY = "only"
"""There is one candidate."""
UNDECIDED = "undecided"
"""The best cannot be told from others."""
TEAM = "team"
"""A team gains more over the best single model than its error."""
NOTHING_FITS = "nothing fits"
"""No candidate keeps to the limits."""
NOT_JUDGED = "not judged"
"""Nothing can be compared."""


@dataclass(frozen=True)
class Wishes:
    """What somebody asks of the model of each part. None asks for nothing."""

    false_alarms: float | None = None
    """Part of new normals that may be reported, in (0, 1)."""
    latency_ms: float | None = None
    """Milliseconds that an image may take, above 0."""
    memory_mb: float | None = None
    """Memory that the model may take, above 0, in MB of 2**20 bytes."""
    kind: str | None = None
    """``cpu`` or ``cuda``, where speed and memory count; None takes the newest measurement."""
    miss_cost: float | None = None
    """Of a defect that passes, above 0."""
    alarm_cost: float | None = None
    """Of a good part that is rejected, above 0, in the same unit."""
    defect_rate: float | None = None
    """Part of production that is defective, in (0, 1); None takes that of the test images."""
    robust: bool = False
    """Whether candidates are compared by their worst case over the corruptions of the test images
    that all were scored under, and the images as they are."""

    @property
    def is_on_cost(self) -> bool:
        """Tell whether speed or memory has a limit, so that they have to be measured."""
        return self.latency_ms is not None or self.memory_mb is not None

    def __post_init__(self) -> None:
        """Check that all of it can be meant.

        Raises:
            InputError: with the option.
        """
        for name in ("false_alarms", "defect_rate"):
            rate = getattr(self, name)
            if rate is not None:
                check_rate(f"--{name.replace('_', '-')}", rate)

        for name in ("latency_ms", "memory_mb", "miss_cost", "alarm_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(
                    Sentence.of("decide positive", name=name.replace("_", "-"), value=f"{value:g}")
                )

        # Costs mean nothing alone.
        if (self.miss_cost is None) != (self.alarm_cost is None):
            raise InputError(Sentence.of("decide both costs"))
        if self.defect_rate is not None and self.miss_cost is None:
            raise InputError(Sentence.of("decide defect_rate"))

    @property
    def objective(self) -> str:
        """Give by what candidates are compared: ``cost``, ``caught`` or ``image_auroc``.

        The worst case is one of costs or of image AUROC. A model that calls everything anomalous
        under some light would catch all.
        """
        if self.miss_cost is not None:
            return "cost"
        if self.robust:
            return "image_auroc"
        return "image_auroc" if self.false_alarms is None else "caught"


NO_WISHES = Wishes()
"""Nothing is asked for: candidates are compared by image AUROC."""


@dataclass(frozen=True)
class Excess:
    """A limit that a candidate does not keep, or is not known to keep."""

    limit: str
    """Name of the field of `Wishes`."""
    allowed: float
    """What was asked for."""
    found: float | None
    """What the candidate needs; None where it is not known."""


@dataclass(frozen=True)
class TypeCount:
    """What becomes of one type of defect."""

    name: str
    """Of the type."""
    missed: int
    """Test images that pass."""
    images: int
    """Test images of the type."""


@dataclass(frozen=True)
class Verdicts:
    """What becomes of the test images at the threshold of the promise."""

    missed: int
    """Defective images that pass."""
    defects: int
    """Defective images."""
    alarms: int | None
    """Normal images that are reported; None where they are the calibration normals themselves."""
    normals: int
    """Normal images."""
    by_type: tuple[TypeCount, ...]
    """By defect type, most misses first."""


@dataclass(frozen=True)
class WorstCase:
    """Under what a candidate is worst."""

    condition: str
    """Name of the corruption, ``plain`` for the images as they are."""
    value: float
    """What candidates are compared by there, of the deployed trial."""
    conditions: int
    """Number of conditions, the images as they are among them."""


@dataclass(frozen=True)
class Option:
    """A model or team that can be deployed. A model is its seeds, of which the median is deployed."""

    name: str
    """Configuration and setting, or the members of a team."""
    place: Path
    """Folder of the deployed trial, or file of the team."""
    is_team: bool
    """Whether it is a team."""
    seed: int
    """Of the deployed trial."""
    seeds: tuple[int, ...]
    """Of all its trials."""
    has_checkpoint: bool
    """Whether it can be run."""
    value: float | None
    """By which candidates are compared, more is better, mean over seeds; None for a team."""
    lowest: float | None
    """The same of the worst seed."""
    highest: float | None
    """The same of the best seed."""
    image_auroc: float | None
    """Of the deployed trial."""
    interval: tuple[float, float] | None
    """Where that lies with 95 % confidence, by its test images."""
    promise: Promise
    """What its threshold promises of new normals."""
    verdicts: Verdicts | None
    """At that threshold; None where there is none."""
    cost: Cost
    """Of running it, as it was measured."""
    cost_of: str
    """Part whose trial of the same model was measured; empty for a trial of its own."""
    wins: float | None = None
    """Part of the draws of the test images in which it is best; None where that is not known."""
    is_tied: bool = False
    """Whether it cannot be told from the best."""
    excesses: tuple[Excess, ...] = ()
    """Limits that it does not keep."""
    worst: WorstCase | None = None
    """Under what it is worst; None where nobody asked."""

    @property
    def fits(self) -> bool:
        """Tell whether it keeps to all limits."""
        return not self.excesses


@dataclass(frozen=True)
class TeamGain:
    """What the team of a part is worth."""

    file: Path
    """That names its members."""
    name: str
    """Of its members."""
    gain: float
    """Over the best single model, on images that did not choose it (cross-validated)."""
    error: float
    """Standard error of the gain."""
    problem: str
    """Why it cannot be deployed, ``outdated`` or ``limits``; empty where it can."""

    @property
    def is_beyond_error(self) -> bool:
        """Tell whether the gain is more than its error."""
        return self.gain > self.error


@dataclass(frozen=True)
class LeftOut:
    """A trial that is not compared."""

    name: str
    """Configuration, setting and id of its trial."""
    reason: Sentence
    """Why not."""


@dataclass(frozen=True)
class Images:
    """Numbers of images behind a decision."""

    train: int
    """Normal ones that were trained on."""
    held_out: int
    """Normal ones that were held out, to calibrate."""
    normal: int
    """Normal test images."""
    anomalous: int
    """Defective test images."""


@dataclass(frozen=True)
class Decision:
    """What to deploy for one part, and why."""

    dataset: str
    """Data set, or several joined by +."""
    category: str
    """Category, or several joined by +."""
    state: str
    """One of the words at the top of this file."""
    wishes: Wishes
    """What was asked for."""
    chosen: Option | None
    """To deploy; the nearest where nothing fits, None where nothing is judged."""
    cheaper: Option | None
    """The fastest of those that cannot be told from the chosen one, where that is not itself."""
    options: tuple[Option, ...]
    """All candidates, the best first."""
    left_out: tuple[LeftOut, ...]
    """Trials that are not compared."""
    uncounted: tuple[LeftOut, ...]
    """Finished trials that do not answer for their cell, where they were given."""
    models: int
    """Models of which a trial finished."""
    trials: int
    """Finished trials of the part."""
    failed: int
    """Failed ones."""
    team: TeamGain | None
    """Of the store's team for the part, the one with the largest gain."""
    images: Images | None
    """Behind the chosen one."""
    normals_missing: int
    """Further held-out normals without which the wanted rate cannot be promised."""
    images_factor: float | None
    """How many times as many test images would tell the chosen one from the next."""
    notes: tuple[Sentence, ...]
    """What a reader must know, the gravest first."""
    saturation: Saturation | None = None
    """How many training images are enough for the chosen model; None where too few numbers of images
    were tried (``grid.conditions``: ``k_shot``)."""

    @property
    def part(self) -> str:
        """Name the part as a person does."""
        return part_name(self.dataset, self.category)

    @property
    def tied(self) -> list[Option]:
        """List those that cannot be told from the best, it first."""
        return list(filter(attrgetter("is_tied"), self.options))

    @property
    def fitting(self) -> list[Option]:
        """List those that keep to the limits, the best first."""
        return list(filter(attrgetter("fits"), self.options))

    @property
    def single(self) -> Option | None:
        """Give the best single model, also where a team is chosen; None where nothing is judged."""
        if self.chosen is None or not self.chosen.is_team:
            return self.chosen
        return self.options[0] if self.options else None

    @property
    def is_answer(self) -> bool:
        """Tell whether there is something to deploy that keeps to the limits."""
        return self.state not in (NOTHING_FITS, NOT_JUDGED)
