"""Masks of the training images, derived from a method's saliency and stored with the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.groups import EVALUATION_BATCH, GroupedDataset, Split, members_by
from spurcor.models.backbone import Backbone
from spurcor.presentation.pictures import draw_panels
from spurcor.saliency.attention import attenuated
from spurcor.saliency.maps import Saliency, heat_maps
from spurcor.saliency.masks import Masks, holes, masked, masked_view, outliers
from spurcor.seeding import derive_seed
from spurcor.training.method import Method, RunContext

Mask = Literal["saliency", "attention", "random", "none"]
MOST_GROUPS, SAMPLES = 16, 3  # in the figure


@dataclass(frozen=True)
class Masking:
    """How the images of TRAIN are masked: by stored pixel masks, by attention, or not at all.

    Stored masks are computed once for each phase that trains on masked images, then read from a
    file.
    """

    mask: Mask
    layer: str
    saliency: Saliency
    deviations: float
    quantile: float
    accumulative: bool  # whether to keep the masks of the previous phase, too
    size: tuple[int, int]  # height and width of the network's input

    @property
    def stored(self) -> bool:
        """Whether masks are computed in advance for all images, and not per step or not at all."""
        return self.mask in ("saliency", "random")

    def check(self, run: RunContext) -> None:
        """Check that masks can be located on the training images; raises a `UserError` if not."""
        if self.stored:
            train = run.splits[Split.TRAIN]
            run.splits.transform.window(train.train_images.sizes(train.train_rows))

    def make(self, method: Method, run: RunContext, phase: str, before: str | None) -> None:
        """Compute and save the masks for a phase, batch by batch, from images without augmentation.

        `before` is the previous phase, if it had masks.
        """
        split, transform = run.splits[Split.TRAIN], run.splits.transform
        earlier = self._load(run, before) if before and self.accumulative else None
        if earlier is not None:
            split = masked_view(split, earlier)
        masks = Masks.empty(len(split), *self.size)
        generator = torch.Generator().manual_seed(derive_seed("masks", run.seed, phase))
        for indices in torch.split(torch.arange(len(split)), run.batch_size or EVALUATION_BATCH):
            heat = self._heat(method, transform(split.fetch(indices).x))
            found = outliers(heat, self.deviations)
            if self.mask == "random":
                found = holes(found.sum((1, 2)), *self.size, generator)
            masks.put(indices, found)
        if earlier is not None:
            masks.add(earlier)
        masks.save(self._file(run, phase))
        self._draw(method, run, phase, split, masks)

    def masked(self, run: RunContext, phase: str) -> GroupedDataset:
        """Return TRAIN, with its pixels masked if masks are stored."""
        train = run.splits[Split.TRAIN]
        return masked(train, self._load(run, phase), run.splits.transform) if self.stored else train

    def faded(self, backbone: Backbone, x: Tensor) -> Tensor:
        """Return images (B, C, H, W), attenuated by attention if `mask` is `attention`."""
        if self.mask != "attention":
            return x
        return attenuated(backbone, self.layer, x, self.quantile)

    def _heat(self, method: Method, x: Tensor) -> Tensor:
        return heat_maps(method, x, self.layer, self.saliency)

    def _load(self, run: RunContext, phase: str) -> Masks:
        return Masks.load(self._file(run, phase), *self.size)

    def _file(self, run: RunContext, phase: str) -> Path:
        return run.directory / "masks" / f"{phase}.npy"

    def _draw(
        self, method: Method, run: RunContext, phase: str, split: GroupedDataset, masks: Masks
    ) -> None:
        """Draw the first images of each group, their heat maps and their masked versions."""
        rows = {}
        for members in members_by(split.g.cpu())[:MOST_GROUPS]:
            x, hidden = (s.fetch(members[:SAMPLES]).x for s in (split, masked_view(split, masks)))
            heat = self._heat(method, run.splits.transform(x))
            panels = zip(x / 255, heat, hidden / 255, strict=True)
            labels = split.spec.task == "multilabel"  # which have no groups
            name = str(Split.TRAIN) if labels else split.spec.names[int(split.g[members[0]])]
            rows[name] = [panel.cpu() for sample in panels for panel in sample]
        file = phase.replace("finetune", "masks")
        title = f"{phase}: image, {self.saliency}, masked"
        draw_panels(rows, title, run.directory / "plots" / f"{file}.png")
