"""Defaults that depend on whether the groups of a data set are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import Paths
from spurcor.errors import UserError
from spurcor.system.places import CONF

REPAIR = "val_if_known"  # stands for the repair `val`, or `none` where the groups are unknown


@dataclass(frozen=True)
class Data:
    """The part of a configuration that says what data are read."""

    dataset: Node
    paths: Paths


def knows_groups(tree: Mapping[str, Any]) -> bool:
    """Return whether the data set of a composed configuration knows its samples' groups.

    True for a data set that cannot be read: building the run tells the reason.
    """
    try:
        data = check({key: tree[key] for key in ("dataset", "paths") if key in tree}, Data)
        return bool(data.dataset.build().knows_groups(data.paths.data))
    except UserError:
        return True


def if_groups(known: Any, unknown: Any, *, _root_: DictConfig) -> Any:
    """Return the first value if the groups of the data set are known, else the second."""
    try:
        tree = {
            key: OmegaConf.to_container(_root_[key], resolve=True) for key in ("dataset", "paths")
        }
    except (OmegaConfBaseException, ValueError):  # reported when the configuration is checked
        return known
    return known if knows_groups(tree) else unknown


def chosen_repair(tree: dict[str, Any]) -> None:
    """Replace the default repair `REPAIR` in a composed configuration by what it stands for.

    Raises UserError if options are set of a repair that is left out.
    """
    choices = tree["choices"]
    if choices.get("dfr") != REPAIR:
        return
    choices["dfr"] = "val" if knows_groups(tree) else "none"
    if choices["dfr"] == "none":
        if changed := [key for key, value in tree["dfr"].items() if value != _repair().get(key)]:
            raise UserError(
                f"dfr.{changed[0]}={tree['dfr'][changed[0]]}: without known groups there is no"
                " repair by default; add dfr=val dfr.balance=none dfr.criterion=average for one"
                " that needs none"
            )
        tree["dfr"] = {}


def _repair() -> dict[str, Any]:
    import yaml

    options: dict[str, Any] = yaml.safe_load((CONF / "dfr" / "val.yaml").read_text("utf-8"))
    return options
