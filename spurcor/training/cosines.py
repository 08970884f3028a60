"""Cosines between two gradients, per layer: means, and a histogram per epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spurcor.presentation.pictures import draw_histograms
from spurcor.system.files import write_json
from spurcor.training.kernels import GroupedWeights

BINS = 40  # over [-1, 1]


class CosineHistogram:
    """Histograms (epochs, L, BINS) of the cosines of the kernel groups of L convolutions."""

    def __init__(self, shared: GroupedWeights, epochs: int) -> None:
        groups, device = shared.groups, shared.weights[0].device
        self.places = [i for i, cut in enumerate(groups.values()) if cut.convolution]
        self.layers = [name for name, cut in groups.items() if cut.convolution]
        totals = torch.tensor([groups[name].total for name in self.layers], dtype=torch.int64)
        self.layer_of = torch.repeat_interleave(torch.arange(len(totals)), totals).to(device)
        self.totals = totals.to(device)
        shape = (epochs, len(totals), BINS)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self.epoch = 0

    def add(self, cosines: Sequence[Tensor]) -> dict[str, Tensor]:
        """Count the cosines of each weight's groups, without synchronising with the device.

        Returns `cosine`, the mean over convolutions of their mean cosine; `cosine/<layer>`, the
        mean per convolution; and `opposed/<layer>`, the share of its groups with a negative cosine.
        Without any convolution, only `cosine`, the mean over all groups.
        """
        if not self.layers:
            return {"cosine": torch.cat(list(cosines)).mean()}
        of_layers = [cosines[i] for i in self.places]
        means = torch.stack([c.mean() for c in of_layers])
        every = torch.cat(of_layers)
        opposed = torch.zeros_like(means).index_add_(0, self.layer_of, (every < 0).to(means.dtype))
        bins = ((every + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        counts = self.counts[self.epoch].view(-1)
        counts.scatter_add_(0, self.layer_of * BINS + bins, torch.ones_like(bins))
        layers = {f"cosine/{n}": mean for n, mean in zip(self.layers, means, strict=True)}
        shares = zip(self.layers, opposed / self.totals, strict=True)
        return {"cosine": means.mean(), **layers, **{f"opposed/{n}": share for n, share in shares}}

    def write(self, directory: Path) -> None:
        """Write the histograms to cosines.json and draw them per layer and epoch."""
        if not self.layers:
            return
        counts = self.counts.transpose(0, 1).tolist()
        edges = [2 * i / BINS - 1 for i in range(BINS + 1)]
        by_layer = dict(zip(self.layers, counts, strict=True))
        write_json(directory / "cosines.json", {"edges": edges, "layers": by_layer})
        path = directory / "plots" / "cosines.png"
        draw_histograms(self.counts.cpu(), self.layers, "cosine between the two gradients", path)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {"histogram": self.counts, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.counts.copy_(state["histogram"])
        self.epoch = state["epoch"]
