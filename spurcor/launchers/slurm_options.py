"""Options of a sweep's SLURM jobs, and their names in submitit."""

from dataclasses import dataclass
from typing import Any

from spurcor.config.schema import Site


@dataclass(frozen=True)
class SlurmOptions(Site):
    """Options of hydra.launcher: the site's settings, and how the sweep is submitted."""

    wait: bool = True
    points_per_job: int = 1

    def __post_init__(self) -> None:
        for name in ("timeout_min", "cpus_per_task", "array_parallelism", "points_per_job"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.signal_delay_s < 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s={self.signal_delay_s} must be less than the {self.timeout_min}"
                " minutes of timeout_min"
            )

    @property
    def submitit(self) -> dict[str, Any]:
        """Options for submitit under its own names; null options are left to the cluster."""
        options = {
            "time": self.timeout_min,
            "mem": None if self.mem_gb is None else f"{1024 * self.mem_gb:.0f}M",
            "gpus_per_node": self.gpus_per_node or None,
            "setup": list(self.setup),
        }
        same = ["partition", "account", "qos", "constraint", "cpus_per_task"]
        same += ["array_parallelism", "signal_delay_s", "additional_parameters"]
        options |= {name: getattr(self, name) for name in same}
        return {name: value for name, value in options.items() if value is not None}
