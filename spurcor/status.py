"""Show the progress of a sweep's points: python -m spurcor.status sweep=... [watch=true]"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.schema import OutputPaths
from spurcor.errors import RunError

if TYPE_CHECKING:
    from rich.console import Group

    from spurcor.sweeps.states import PointState

LONGEST = 86400  # seconds: one day


@dataclass(frozen=True)
class StatusConfig:
    """Options of `spurcor.status`."""

    sweep: str
    paths: OutputPaths
    watch: bool = False
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= LONGEST:
            raise ValueError(f"seconds={self.seconds} must be positive and at most {LONGEST}")


def main(cfg: DictConfig) -> int:
    """Show the sweep and return 1 if a point has failed or is damaged, else 0."""
    config = check(cfg, StatusConfig)

    from spurcor.sweeps.slurm import Unanswered

    found: Sequence[PointState]
    try:
        found = _look(config)
    except Unanswered as error:
        raise RunError(f"SLURM is not responding: {error}") from error
    if config.watch:
        found = _watch(config, found)
    else:
        from spurcor.system.terminal import Terminal

        Terminal().console.print(_page(found))
    return int(any(one.status in ("failed", "damaged") for one in found))


def _look(config: StatusConfig) -> Sequence["PointState"]:
    from spurcor.sweeps.states import inspected, states

    return [inspected(one) for one in states(config.paths.outputs, config.sweep)]


def _watch(config: StatusConfig, found: Sequence["PointState"]) -> Sequence["PointState"]:
    """Refresh the page until no point is under way, finished points last; return the states."""
    from rich.live import Live

    from spurcor.sweeps.slurm import Unanswered
    from spurcor.sweeps.states import UNDER_WAY
    from spurcor.system.terminal import Terminal

    def sorted_page() -> "Group":
        order = (
            "running",
            "queued",
            "held",
            "failed",
            "damaged",
            "interrupted",
            "missing",
            "pruned",
            "done",
        )
        return _page(sorted(found, key=lambda one: order.index(one.status)))

    with Live(sorted_page(), console=Terminal().console, auto_refresh=False) as live:
        while any(one.status in UNDER_WAY for one in found):
            time.sleep(config.seconds)
            try:
                found = _look(config)
            except Unanswered:  # keep showing what was last seen
                continue
            live.update(sorted_page(), refresh=True)
    return found


def _page(found: Sequence["PointState"]) -> "Group":
    from rich.console import Group

    from spurcor.sweeps.tables import status_table

    counts = Counter(one.status for one in found)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return Group(status_table(found), summary)


if __name__ == "__main__":
    sys.exit(cli.run(main, "status"))
