"""Images replaced by features of a fixed network, extracted once and cached for all runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from spurcor.config.nodes import Node
from spurcor.config.schema import FeatureOptions
from spurcor.data.groups import DataInfo, GroupedDataset, evaluation_chunks
from spurcor.data.images import Images
from spurcor.data.splits import Splits
from spurcor.data.store import place_of
from spurcor.data.transforms import Fixed
from spurcor.errors import RunError, UserError
from spurcor.models.backbone import Backbone
from spurcor.seeding import derive_seed
from spurcor.system.files import decoding, replacing
from spurcor.system.terminal import tracked


def fixed_network(options: FeatureOptions, info: DataInfo, seed: int) -> tuple[Backbone, DataInfo]:
    """Return the network whose features replace the images, and the facts about these features.

    Random weights are drawn from `seed`.
    """
    torch.manual_seed(derive_seed("features", seed))
    backbone: Backbone = options.backbone.build(info=info)
    size = backbone.size(options.layer, options.pooling)
    return backbone, replace(info, shape=(size, 1, 1))


def freeze(
    splits: Splits, backbone: Backbone, options: FeatureOptions, dataset: Node, folder: Path
) -> Splits:
    """Return splits whose samples are features (D, 1, 1) of the evaluation images.

    Features are cached in `folder`, next to the stores of photographs, under a key that includes
    the hash of the network's weights, and placed on the splits' device. A `RunError` is raised if
    features are not finite.
    """
    layer = backbone.layer(options.layer)
    backbone.to(splits.device).to(memory_format=torch.channels_last).eval()
    backbone.channels_last = True  # on a CPU up to twice as fast, and hardly ever slower
    reduced = options.precision == "bf16" or (
        options.precision == "auto" and splits.device.type == "cuda"
    )
    backbone.autocast = torch.bfloat16 if reduced else None
    transform = dataset.arguments.get("transform")
    shared = {
        "dataset": dataset.target,
        "transform": transform.hashed() if isinstance(transform, Node) else None,
        "weights": weights_hash(backbone.state_dict()),
        "backbone": options.backbone.hashed(),
        "layer": layer,
        "pooling": options.pooling,
        "precision": options.precision,
    }
    used = "bf16" if reduced else "fp32"
    data: dict[str, GroupedDataset] = {}
    for name, split in splits.data.items():
        key = _key({**shared, "data": split.fingerprint})
        path = place_of(folder / "features") / f"{key[:16]}-{used}.npy"
        if not path.exists():
            _extract(path, f"{name}: features of {layer}", backbone, layer, options, splits, split)
        features = _read(path, len(split)).to(splits.device)
        # The signature is the key, not a hash of the values, whose last digits (with `auto` also
        # precision) depend on the machine: a run trained on a GPU may be opened without one.
        signature = torch.full((len(split),), int(key[:15], 16), dtype=torch.int64)
        images = Images(features[:, :, None, None], signature)
        data[name] = GroupedDataset(split.spec, images, split.y, split.a, split.source)
    return Splits(data, Fixed(options.normalize), splits.device)


def _key(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, count: int) -> Tensor:
    """Load cached features (N, D) from disk; all samples must be present."""
    with decoding(path, "remove it, and it will be rebuilt"):
        features = torch.from_numpy(np.load(path, allow_pickle=False))
        if features.dim() != 2 or len(features) != count:
            raise ValueError(f"its shape is {tuple(features.shape)}, not that of {count} samples")
        return features


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and values of weights and buffers."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _extract(
    path: Path,
    title: str,
    backbone: Backbone,
    layer: str,
    options: FeatureOptions,
    splits: Splits,
    split: GroupedDataset,
) -> None:
    """Write the features (N, D) float32 of a split atomically, in one process while others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                return
            chunks = evaluation_chunks(split, splits.transform)
            with torch.no_grad():
                parts = [
                    backbone.features(
                        splits.transform(split.fetch(chunk).x), [layer], options.pooling
                    )[layer].cpu()
                    for chunk in tracked(chunks, title, total=len(chunks))
                ]
            features = torch.cat(parts)
            if not bool(features.isfinite().all()):
                bad = int((~features.isfinite()).any(1).sum())
                raise RunError(
                    f"{title}: {bad} of {len(split)} samples have features that are not finite"
                )
            with replacing(path) as beside, beside.open("wb") as file:
                np.save(file, features.numpy())
    except OSError as error:
        raise UserError(
            f"features cannot be written to {path.parent} ({error.strerror or error}); set"
            " SPURCOR_STORE to a writable folder"
        ) from error
