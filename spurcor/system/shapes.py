"""Keys and types that readers of a run's JSON files rely on; other keys may be present."""

from typing import Any, NotRequired

from typing_extensions import TypedDict

Figure = float | None  # None: undefined


class Group(TypedDict):
    """Accuracy and size of a group in a split."""

    accuracy: Figure
    count: int


class Report(TypedDict):
    """Accuracies of a split."""

    worst: Figure
    average: Figure
    adjusted: Figure
    aligned: Figure
    conflicting: Figure
    groups: dict[str, Group]
    classes: NotRequired[dict[str, Figure]]  # absent from older results
    labels: NotRequired[dict[str, dict[str, Figure]]]


class Figures(TypedDict):
    """Accuracies by split."""

    val: Report | None
    test: Report | None
    tests: dict[str, Report]


class Phase(Figures):
    """Results of a phase of training."""

    test: Report  # type: ignore[misc]  # always evaluated


class Repair(Figures):
    """Results of a repair; without metrics if it could not be fitted."""

    options: dict[str, Any]
    repair: NotRequired[str]
    target: NotRequired[str]
    note: NotRequired[str | None]


class Found(TypedDict):
    """Results of an analysis."""

    metrics: NotRequired[dict[str, Figure]]


class Settings(TypedDict):
    """The settings that affect the weights."""

    dataset: str
    method: str


class Cost(TypedDict):
    """The run whose network has told a run's groups apart, and what it took."""

    run: str
    images_seen: int
    seconds: float


class Facts(TypedDict):
    """Facts about a run."""

    identity: str
    seed: int
    dataset: str
    method: str
    config: Settings
    commit: NotRequired[str]
    splits: dict[str, str]
    seconds: float
    images_seen: int
    origin_images_seen: NotRequired[int]
    reference: NotRequired[Cost]


class Selected(TypedDict):
    """The selected epoch and its phase, if any."""

    phase: str | None
    epoch: int | None


class Result(Figures):
    """The contents of a run's result.json."""

    run: Facts
    selected: Selected
    dfr: dict[str, Repair]
    analysis: NotRequired[dict[str, Found]]
    phases: NotRequired[dict[str, Phase]]
    groups: NotRequired[dict[str, dict[str, object]]]


class Extracted(TypedDict):
    """The contents of the marker file in an extracted archive."""

    bytes: int


class Planned(TypedDict):
    """A phase in phases.json."""

    name: str
    epochs: int


class Plan(TypedDict):
    """The contents of phases.json."""

    phases: list[Planned]


class Row(TypedDict):
    """A line of metrics.jsonl."""

    phase: str
    epoch: int
    step: int
    time: int
    seconds: float


class Entry(TypedDict):
    """A line of points.jsonl."""

    overrides: list[str]
    identity: str
    seed: int
    directory: str
    needs: list[str]
    job: str | None
    log: str | None
