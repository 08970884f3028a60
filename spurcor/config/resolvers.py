"""OmegaConf resolvers for spurcor's configuration files."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from spurcor.config.grouped import if_groups
from spurcor.config.nodes import locate
from spurcor.config.packages import conf_folders
from spurcor.errors import UserError
from spurcor.system.places import CONF, REPO


def sweep_files() -> list[Path]:
    """Return the sweep files, sweeps/<dataset>/<question>.yaml."""
    return [file for one in conf_folders() for file in sorted((one / "sweeps").glob("*/*.yaml"))]


@functools.cache
def _choices() -> Mapping[str, Mapping[str, str]]:
    import yaml

    loaded: Mapping[str, Mapping[str, str]] = yaml.safe_load(
        (CONF / "choices.yaml").read_text(encoding="utf-8")
    )
    return loaded


def choice(group: str, dataset: str, method: str, features: str = "none") -> str:
    """Return the default option of a config group for a data set and method (conf/choices.yaml)."""
    table = _choices()[group]
    if features != "none":
        return table.get(f"features/{method}") or table["features"]
    return table.get(f"{dataset}/{method}") or table.get(dataset) or table["default"]


def first(*values: Any) -> Any:
    """Return the first value that is not null, or null."""
    return next((value for value in values if value is not None), None)


def input_of(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """Return what the network that sees the images was trained on, or else `default`.

    `key` is an argument of `Photo`: mean, std, size, resize or interpolation.
    """
    for path in ("features.backbone", "backbone"):
        node = OmegaConf.select(_root_, path)
        if isinstance(node, DictConfig):
            made_for: Mapping[str, Any] = _asked(node, "made_for") or {}
            value = made_for.get(key, default)
            return OmegaConf.create(value) if isinstance(value, list) else value
    return default


def published_tag(*, _parent_: DictConfig) -> Any:
    """Return the tag under which a backbone's weights are published, or null."""
    return _asked(_parent_, "default_tag")


def _asked(node: DictConfig, method: str) -> Any:
    """Return what the class of a node says of its arguments; None where it has no such method."""
    given = {
        str(key): node[key]
        for key in node
        if not (OmegaConf.is_missing(node, key) or key in ("_target_", "tag"))
    }
    try:
        return getattr(locate(str(node["_target_"])), method, lambda **_: None)(**given)
    except UserError:  # told when the node is checked
        return None


class PluginFiles(SearchPathPlugin):
    """Search path of Hydra with the `conf` folders of plug-ins after spurcor's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders of plug-ins; called by Hydra."""
        for folder in conf_folders()[1:]:
            search_path.append("spurcor-plugins", f"file://{folder}")


def register() -> None:
    """Register spurcor's resolvers with OmegaConf and the plug-ins' files with Hydra."""
    if not CONF.is_dir():
        raise UserError(
            f"there is no conf folder next to {REPO / 'spurcor'}; install spurcor from a clone"
            " with 'pip install -e .'"
        )
    conf_folders()  # raises UserError for an invalid plug-in
    Plugins.instance().register(PluginFiles)
    OmegaConf.register_new_resolver("choice", choice, replace=True)
    OmegaConf.register_new_resolver("first", first, replace=True)
    OmegaConf.register_new_resolver("if_groups", if_groups, replace=True)
    OmegaConf.register_new_resolver("input", input_of, replace=True)
    OmegaConf.register_new_resolver("published_tag", published_tag, replace=True)
    OmegaConf.register_new_resolver("repo_root", lambda: str(REPO), replace=True)
