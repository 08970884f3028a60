"""Any classification network of timm, through timm's own interface."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spurcor.data.groups import DataInfo
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.models.pretrained import fill
from spurcor.models.published import Published
from spurcor.models.timm_models import (
    converted,
    default_config,
    published,
    recorded_input,
    recorded_tag,
)

POOL = "pool"  # timm's own pooled output, which its classifier would read


class Timm(Backbone):
    """A network of timm (Wightman, 2019): maps of its stages or blocks, then its pooled output.

    `model` is a name of `timm.list_models()`. Layers are stage_0 ..., or block_0 ... where all
    have one resolution, as in vision transformers; a map has no class tokens. The last layer is
    `pool`. `pretrained`: `imagenet` (the weights that timm publishes under `tag`, null: its default
    ones), `none`, or a file with a state dict. Unavailable weights are an error, never random.
    """

    def __init__(
        self,
        info: DataInfo,
        model: str,
        tag: str | None = None,
        pretrained: str = "none",
        trainable: str = "all",
    ) -> None:
        super().__init__()
        self.trainable = trainable
        options = _options(model, info)
        dims = _dims(model, options, info)
        self.network = _create(model, options)
        _refuse_cut_patches(model, self.network, info)
        stages = self.network.feature_info
        kind = "block" if len({stage["reduction"] for stage in stages}) == 1 else "stage"
        self.stages = {f"{kind}_{i}": str(stage["module"]) for i, stage in enumerate(stages)}
        self.layers = (*self.stages, POOL)
        self.dims = dict(zip(self.layers, dims, strict=True))
        self.kinds = {name: "vector" if name == POOL else "map" for name in self.layers}
        if pretrained == "none":
            return
        if info.shape[0] != 3:
            raise ValueError(
                f"pretrained={pretrained} needs images with 3 channels, not {info.shape[0]}"
            )
        state = published(model, tag).state(pretrained)
        heads = self.network.default_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        convert = functools.partial(converted, network=self.network)
        fill(self.network, state, pretrained, model, heads, convert)

    @classmethod
    def published(cls, **arguments: Any) -> Published | None:
        """Return the weights that timm publishes under this tag."""
        if arguments.get("pretrained", "none") == "none":  # perhaps there are none
            return None
        return published(arguments["model"], arguments.get("tag"))

    @classmethod
    def made_for(cls, **arguments: Any) -> dict[str, Any]:
        """Return the normalisation and the sizes that timm records for the weights."""
        if arguments.get("pretrained", "none") == "none":
            return {}
        return recorded_input(arguments.get("model"))

    @classmethod
    def default_tag(cls, **arguments: Any) -> str | None:
        """Return the tag that timm's default weights of this model have today."""
        if arguments.get("pretrained") != "imagenet":
            return None
        return recorded_tag(arguments.get("model"))

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, D, H, W) of the stages or blocks and (B, D) of the pooled output."""
        network, whole = self.network, POOL in layers
        wanted = sorted(self.layers.index(name) for name in layers if name != POOL)
        if not wanted:
            return {POOL: network.forward_head(network.forward_features(x), pre_logits=True)}
        given = network.forward_intermediates(
            x, indices=wanted, output_fmt="NCHW", stop_early=not whole, intermediates_only=not whole
        )
        last, maps = given if whole else (None, given)
        outputs = {self.layers[i]: output for i, output in zip(wanted, maps, strict=True)}
        if whole:
            outputs[POOL] = network.forward_head(last, pre_logits=True)
        return {name: outputs[name] for name in layers}

    def path(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return what the modules give, in whatever layout: timm's maps may be off the graph."""
        kept: dict[str, Tensor] = {}
        modules = {name: self._module(name) for name in layers if name != POOL}
        hooks = [
            module.register_forward_hook(functools.partial(_keep, kept, name))
            for name, module in modules.items()
        ]
        try:
            kept |= self.activations(x, [POOL])
        finally:
            for hook in hooks:
                hook.remove()
        return {name: kept[name] for name in layers}

    def _module(self, layer: str) -> nn.Module:
        try:
            module: nn.Module = self.network.get_submodule(self.stages[layer])
        except AttributeError as error:  # of some architectures timm records no module
            raise UserError(
                f"{self.name}: timm names no module that gives layer={layer}"
            ) from error
        return module

    def maps(self, layer: str, output: Tensor, height: int, width: int) -> Tensor:
        """Return (B, D, h, w) of a module's output: a map in either layout, or tokens by row."""
        if output.dim() == 4:
            return output if output.shape[1] == self.dims[layer] else output.permute(0, 3, 1, 2)
        for prefix in (getattr(self.network, "num_prefix_tokens", 0), 0):
            patches = output[:, prefix:].mT
            rows = round((patches.shape[2] * height / width) ** 0.5)
            if patches.shape[2] % rows == 0:
                return patches.reshape(*patches.shape[:2], rows, -1)
        raise UserError(f"layer={layer} has {output.shape[1]} tokens, which form no grid")

    def spatial(self, layer: str | int | None = None) -> str:
        """Return the layer named, or the deepest map that the output depends on."""
        if getattr(self.network, "global_pool", None) != "token":
            return super().spatial(layer)
        *maps, last, _ = self.layers
        name = maps[-1] if layer is None else super().spatial(layer)
        if name == last:
            raise UserError(
                f"layer={layer}: only its class token reaches the output; choose one of"
                f" {', '.join(maps)}"
            )
        return name


def _keep(kept: dict[str, Tensor], name: str, module: nn.Module, given: Any, output: Any) -> None:
    kept[name] = output


def _options(model: str, info: DataInfo) -> dict[str, Any]:
    """Return what timm is asked for: no classifier, the images' channels and, if fixed, size."""
    config = default_config(model)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": info.shape[0]}
    if config.fixed_input_size and config.input_size[1:] != info.shape[1:]:
        options["img_size"] = info.shape[1:]
    return options


def _refuse_cut_patches(model: str, network: Any, info: DataInfo) -> None:
    """Refuse images of which timm would leave out the pixels of the last, incomplete patches."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch and any(side % p for side, p in zip(info.shape[1:], patch, strict=True)):
        raise ValueError(
            f"model={model} needs images whose sides are multiples of {patch[0]} pixels, not"
            f" {' x '.join(map(str, info.shape[1:]))}; set dataset.transform.size"
        )


def _create(model: str, options: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(model.partition(".")[0], **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        sides = options.get("img_size", default_config(model).input_size[1:])
        wanted = _for(model, options["in_chans"], sides)
        raise ValueError(f"model={model} cannot be built {wanted}: {error}") from error


def _dims(model: str, options: dict[str, Any], info: DataInfo) -> list[int]:
    """Return D of every layer, from one image's way through a network without values."""
    with torch.device("meta"):
        network = _create(model, options).eval()
        x = torch.zeros(1, *info.shape)
    try:
        with torch.no_grad():
            last, maps = network.forward_intermediates(x, output_fmt="NCHW")
            pooled = network.forward_head(last, pre_logits=True)
        if pooled.dim() != 2 or len(maps) != len(network.feature_info):
            raise AttributeError("its layers do not follow timm's interface")
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"model={model} is not supported: {error}") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, *sides = info.shape
        raise ValueError(f"model={model} fails {_for(model, channels, sides)}: {error}") from error
    return [*(each.shape[1] for each in maps), pooled.shape[1]]


def _for(model: str, channels: int, sides: Sequence[int]) -> str:
    """Return which images a model was asked for, and which it is made for."""
    asked = " x ".join(map(str, (channels, *sides)))
    made_for = " x ".join(map(str, default_config(model).input_size))
    return f"for images of {asked} (it is made for {made_for})"
