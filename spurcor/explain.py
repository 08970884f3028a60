"""Show where a finished run looks: python -m spurcor.explain run=... group=... [mistakes=true]"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.schema import RunPaths
from spurcor.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from spurcor.library import FinishedRun


@dataclass(frozen=True)
class ExplainConfig:
    """Options of `spurcor.explain`; see conf/explain.yaml."""

    run: str
    paths: RunPaths
    group: str | tuple[str, ...] | None = None
    split: str = "test"
    mistakes: bool = False
    num_images: int = 6
    saliency: Literal["xgrad_cam", "grad_cam", "layer_cam"] = "grad_cam"
    layer: int | str | None = None

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images={self.num_images} must be at least 1")


def main(cfg: DictConfig) -> int:
    """Draw the picture and return the exit code."""
    config = check(cfg, ExplainConfig)

    from spurcor.library import FinishedRun
    from spurcor.runs import lookup
    from spurcor.system.terminal import Terminal, log_to_terminal

    log_to_terminal()
    path = draw(FinishedRun(*lookup.reopen(config.run, config.paths)), config)
    Terminal().say(f"picture {path}")
    return 0


def draw(run: "FinishedRun", config: ExplainConfig) -> Path:
    """Draw the selected images with their saliency maps and return the path of the picture."""
    from spurcor.presentation.pictures import draw_panels
    from spurcor.saliency.maps import heat_maps

    split, layer = run.splits[config.split], run.method.backbone.spatial(config.layer)
    rows = {}
    for name, indices in _chosen(run, config).items():
        x = split.fetch(indices[: config.num_images]).x
        heat = heat_maps(run.method, run.splits.transform(x), layer, config.saliency)
        pairs = zip(x / 255, heat, strict=True)
        rows[name] = [panel.cpu() for pair in pairs for panel in pair]
    kind = "-mistakes" * config.mistakes
    place = f"{run.directory.parent.name}-{run.directory.name}"
    what = [f"{config.split}{kind}", *(rows if config.group else ()), layer, config.saliency]
    file = "-".join(what).replace("/", "_")
    path = config.paths.outputs / "explain" / place / f"{file}.png"
    draw_panels(rows, f"{run.name}\n{config.saliency} of {layer}, {config.split}{kind}", path)
    return path


def _chosen(run: "FinishedRun", config: ExplainConfig) -> "dict[str, Tensor]":
    """Return the positions of the selected images in the split, by group."""
    import torch

    from spurcor.data.groups import members_by

    split = run.splits[config.split]
    asked = (config.group,) if isinstance(config.group, str) else config.group
    if asked:
        split.spec.require_classes(f"group={config.group}")
    kept = run.mistakes(config.split) if config.mistakes else torch.arange(len(split))
    if split.spec.task == "multilabel":
        return {config.split: kept}
    names, g = split.spec.names, split.g.cpu()
    for name in asked or ():
        if name not in names:
            raise UserError(f"group={name} is not a group; choose from {', '.join(names)}")
    found = {names[int(g[members[0]])]: members for members in members_by(g, kept)}
    what = "no mistakes" if config.mistakes else "no images"
    for name in asked or ():
        if name not in found:
            raise UserError(f"group={name}: {config.split} has {what} in this group")
    if not found:
        raise UserError(f"split={config.split} has {what} to show")
    return {name: found[name] for name in asked or found}


if __name__ == "__main__":
    sys.exit(cli.run(main, "explain"))
