"""Clusters of images by a network's representation: computing, storing and describing them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, evaluation_chunks
from spurcor.data.tables import CsvTable
from spurcor.data.transforms import Transform
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.presentation.pictures import draw_scatter
from spurcor.pruning.kmeans import spherical_kmeans
from spurcor.seeding import derive_seed
from spurcor.system.files import replacing, write_json
from spurcor.system.terminal import tracked

Centres = Literal["directions", "features"]  # what a cluster centre averages
MARK = "# fingerprint of the split: "  # the first line of clusters.csv
MOST_POINTS = 5000  # in the picture


@torch.no_grad()
def represent(backbone: Backbone, data: GroupedDataset, transform: Transform) -> Tensor:
    """Return the pooled output (N, D) of a backbone in eval mode for a split's un-augmented images.

    It stays on the device of the split's labels.
    """
    x = torch.empty(len(data), backbone.size(-1), device=data.y.device)
    chunks = evaluation_chunks(data, transform)
    for indices in tracked(chunks, "representation of the images", total=len(chunks)):
        x[indices] = backbone(transform(data.fetch(indices).x))
    return x


def cluster(x: Tensor, num_clusters: int, seed: int, centres: Centres = "directions") -> Tensor:
    """Return clusters (N,) of a representation (N, D), on the CPU; the run's seed fixes them."""
    raw = centres == "features"
    return spherical_kmeans(x, num_clusters, derive_seed("clusters", seed), raw).cpu()


# --- files ----------------------------------------------------------------------------------------


def write_clusters(
    folder: Path, data: GroupedDataset, clusters: Tensor, drawn: Tensor | None = None
) -> None:
    """Write clusters.csv; a column `drawn` marks the samples (M,) of a de-biasing set, if given."""
    import pandas as pd

    columns: dict[str, Any] = {"index": np.arange(len(data)), "label": data.y.cpu().numpy()}
    columns["cluster"] = clusters.numpy()
    if drawn is not None:
        columns["drawn"] = np.isin(columns["index"], drawn.numpy()).astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "clusters.csv") as beside, beside.open("w") as file:
        file.write(f"{MARK}{data.fingerprint}\n")
        pd.DataFrame(columns).to_csv(file, index=False)


def read_clusters(path: Path, data: GroupedDataset) -> Tensor:
    """Load the clusters (N,) of a split from clusters.csv, or from PruSC's file (`cluster_assign`).

    Raises UserError unless every sample is listed once with its class and the file's fingerprint,
    if any, matches the split.
    """
    mark, header = _head(path)
    name = "cluster_assign" if "cluster_assign" in header else "cluster"
    table = CsvTable.read(path, (), ("index", "label", name), comment="#")
    if mark not in (None, data.fingerprint):
        raise UserError(
            f"method.clusters={path} was made from other training data; cluster a run on"
            " the same data set, or leave it out"
        )
    index, label = table.whole("index"), table.whole("label")
    seen = torch.bincount(index[index < len(data)], minlength=len(data))
    missing, twice = (seen == 0).nonzero().squeeze(1), (seen > 1).nonzero().squeeze(1)
    strange = index[index >= len(data)]
    for positions, what in (
        (missing, "lacks"),
        (twice, "repeats"),
        (strange, "has beyond the end"),
    ):
        if len(positions):
            raise UserError(
                f"method.clusters={path} {what} {len(positions)} of the indices 0 to"
                f" {len(data) - 1} of TRAIN (the first is {int(positions[0])}); cluster this data"
                " set again"
            )
    if wrong := int((label != data.y.cpu()[index]).sum()):
        raise UserError(
            f"method.clusters={path} and TRAIN disagree on the class of {wrong} of {len(data)}"
            " samples; it was made from another split"
        )
    clusters = torch.empty(len(data), dtype=torch.int64)
    clusters[index] = table.whole(name)
    return clusters


def read_drawn(folder: Path) -> Tensor:
    """Return the positions (M,) of the de-biasing set that `write_clusters` marked."""
    table = CsvTable.read(folder / "clusters.csv", (), ("drawn",), comment="#")
    return table.whole("drawn").nonzero().squeeze(1)


def _head(path: Path) -> tuple[str | None, list[str]]:
    """Return the fingerprint from the first line, None if there is none, and the column names."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline().strip()
            if first.startswith(MARK):
                return first.removeprefix(MARK), file.readline().strip().split(",")
            return None, first.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"method.clusters={path} cannot be read ({error})") from error


# --- contents -------------------------------------------------------------------------------------


def describe(
    folder: Path, picture: Path, x: Tensor, data: GroupedDataset, clusters: Tensor
) -> dict[str, Any]:
    """Write table.csv, clusters.json and a scatter plot; return the contents of clusters.json."""
    import pandas as pd

    spec = data.spec
    named = {"class": (data.y, spec.classes), "attribute": (data.a, spec.attributes)}
    labels = {of: np.array(names)[codes.cpu().numpy()] for of, (codes, names) in named.items()}
    counts = [
        pd.crosstab(clusters.numpy(), labels[of])
        .reindex(columns=names, fill_value=0)
        .add_prefix(f"{of} ")
        for of, (_, names) in named.items()
    ]
    table = pd.concat([pd.Series(clusters.numpy()).value_counts().rename("size"), *counts], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "table.csv") as beside:
        table.sort_index().rename_axis("cluster").to_csv(beside)
    agreement = {of: agree(clusters.numpy(), values) for of, values in labels.items()}
    found = {"num_clusters": len(table), "num_samples": len(data), **agreement}
    write_json(folder / "clusters.json", found)
    shown = torch.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).long()
    colours = {"cluster": clusters.numpy().astype(str), **labels}
    draw_scatter(
        principal(x[shown.to(x.device)].cpu()),
        {name: values[shown.numpy()] for name, values in colours.items()},
        picture,
    )
    return found


def agree(clusters: Any, labels: Any) -> Mapping[str, float]:
    """Return how well clusters (N,) predict labels (N,).

    `purity` is the share of samples with the most frequent label of their cluster; mutual
    information is in nats, and normalised by the mean of both entropies.
    """
    from sklearn import metrics

    table = metrics.cluster.contingency_matrix(labels, clusters)
    return {
        "purity": float(table.max(axis=0).sum() / table.sum()),
        "mutual_information": float(metrics.mutual_info_score(labels, clusters)),
        "normalized_mutual_information": float(
            metrics.normalized_mutual_info_score(labels, clusters)
        ),
    }


def principal(x: Tensor) -> Tensor:
    """Return the first two principal components (N, 2), zero where there are fewer."""
    from sklearn.decomposition import PCA

    count = min(2, *x.shape)
    found = PCA(count, svd_solver="randomized", random_state=0).fit_transform(x.numpy())
    return torch.nn.functional.pad(torch.from_numpy(found), (0, 2 - count))
