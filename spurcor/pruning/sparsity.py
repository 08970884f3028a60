"""How many weights the gates keep: shares, files, and a warning for fully pruned layers."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from spurcor.models.weights import save_weights
from spurcor.pruning.gates import gates_of
from spurcor.system.files import write_json

log = logging.getLogger(__name__)


def layer_of(name: str) -> str:
    """Return the layer of a weight, such as `conv1` for `backbone.conv1.weight`.

    For `backbone.attn.in_proj_weight` it is `attn.in_proj`.
    """
    return name.removeprefix("backbone.").removesuffix("weight").rstrip("._")


def kept_shares(module: nn.Module) -> dict[str, Tensor]:
    """Return the shares of gated weights kept, overall and per layer; empty without gates."""
    found = gates_of(module)
    if not found:
        return {}
    counts = [gate.kept.sum() for gate in found.values()]
    sizes = [gate.logit.numel() for gate in found.values()]
    layers = zip(found, counts, sizes, strict=True)
    return {
        "kept": torch.stack(counts).sum() / sum(sizes),
        **{f"kept/{layer_of(name)}": count / size for name, count, size in layers},
    }


def save_gates(module: nn.Module, directory: Path) -> None:
    """Write the logits to gates.safetensors and the shares kept to gates.json.

    Warns of layers that keep no weight.
    """
    logits = {name: gate.logit.detach().cpu() for name, gate in gates_of(module).items()}
    save_weights(directory / "gates.safetensors", logits)
    kept = {name: float(share) for name, share in kept_shares(module).items()}
    sizes = {layer_of(name): logit.numel() for name, logit in logits.items()}
    layers = {name: {"kept": kept[f"kept/{name}"], "of": of} for name, of in sizes.items()}
    whole = {"kept": kept["kept"], "of": sum(sizes.values())}
    write_json(directory / "gates.json", {**whole, "layers": layers})
    if closed := [name for name, layer in layers.items() if layer["kept"] == 0]:
        log.warning(
            "all weights of %s are pruned, so later layers see nothing of the image; a smaller"
            " method.lambda_sparse, method.prune_lr or method.prune_epochs keeps more",
            ", ".join(closed),
        )
