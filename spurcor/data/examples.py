"""Pictures of the groups of a split."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, members_by
from spurcor.presentation.pictures import save

EXAMPLES = 8  # images per group
ROWS = 24  # most groups
POINTS = 5000  # most samples of features


def draw_examples(split: GroupedDataset, path: Path) -> None:
    """Draw a row of example images for each group of a split, as decoded for evaluation."""
    from matplotlib.figure import Figure

    if split.spec.task == "multilabel":
        groups = {
            name: split.y[:, label].nonzero().squeeze(1)
            for label, name in enumerate(split.spec.names)
        }
    else:
        groups = {split.spec.names[int(split.g[m[0]])]: m for m in members_by(split.g)}
    shown = list(groups.items())[:ROWS]
    if split.images.sizes(split.rows[:1]).tolist() == [[1, 1]]:
        _draw_features(split, dict(shown), path)
        return
    figure = Figure(figsize=(1.2 * EXAMPLES + 2, 1.25 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), EXAMPLES, squeeze=False)
    for row, (name, members) in enumerate(shown):
        chosen = members[:: max(1, len(members) // EXAMPLES)][:EXAMPLES]
        images = split.fetch(chosen).x.permute(0, 2, 3, 1).numpy()
        for axis in axes[row]:
            axis.set_axis_off()
        for axis, image in zip(axes[row], images, strict=False):
            axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray")
        axes[row][0].set_title(f"{name}  ({len(members):,})", fontsize=8, loc="left")
    save(figure, path)


def _draw_features(split: GroupedDataset, groups: Mapping[str, Tensor], path: Path) -> None:
    """Draw features on the first two principal components of at most `POINTS` samples."""
    from matplotlib.figure import Figure

    groups = {name: rows[:: len(split) // POINTS + 1] for name, rows in groups.items()}
    x = split.fetch(torch.cat(list(groups.values()))).x.flatten(1)
    x = x - x.mean(0)
    axes = torch.linalg.svd(x, full_matrices=False)[2][:2]
    x = torch.nn.functional.pad(x @ axes.T, (0, 2 - len(axes)))
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    first = 0
    for name, rows in groups.items():
        points = x[first : first + len(rows)].numpy()
        axis.scatter(points[:, 0], points[:, 1], s=6, label=name)
        first += len(rows)
    axis.set(xlabel="first principal component", ylabel="second principal component")
    axis.legend(fontsize=8)
    save(figure, path)
