"""What readers of a run's JSON files count on: keys and their types. Others may be there too."""

from typing import Any, NotRequired

from typing_extensions import TypedDict

Figure = float | None  # None: not defined


class Group(TypedDict):
    """A group of a split."""

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
    classes: NotRequired[dict[str, Figure]]  # older results have none
    labels: NotRequired[dict[str, dict[str, Figure]]]


class Figures(TypedDict):
    """Reports by split."""

    val: Report | None
    test: Report | None
    tests: dict[str, Report]


class Phase(Figures):
    """What a phase has left for later ones, or for readers."""

    test: Report  # type: ignore[misc]  # it was trained


class Repair(Figures):
    """What a repair has found; without figures where nothing could be fitted."""

    options: dict[str, Any]
    note: NotRequired[str | None]


class Found(TypedDict):
    """What an analysis has found."""

    metrics: NotRequired[dict[str, Figure]]


class Settings(TypedDict):
    """What moved the weights."""

    dataset: str
    method: str


class Facts(TypedDict):
    """What a run was."""

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


class Selected(TypedDict):
    """The epoch that was selected, if there was one to select."""

    phase: str | None
    epoch: int | None


class Result(Figures):
    """result.json of a run."""

    run: Facts
    selected: Selected
    dfr: dict[str, Repair]
    analysis: NotRequired[dict[str, Found]]
    phases: NotRequired[dict[str, Phase]]


class Extracted(TypedDict):
    """What stands beside the files of an archive."""

    bytes: int


class Planned(TypedDict):
    """A phase of phases.json."""

    name: str
    epochs: int


class Plan(TypedDict):
    """phases.json."""

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
