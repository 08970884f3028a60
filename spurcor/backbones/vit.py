"""Vision transformers: torchvision's ViT-B/16 and DINOv2, both built from timm's blocks."""

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow
from spurcor.models.pretrained import fill
from spurcor.models.published import Published, State, on_the_web

# Names of timm's architectures. timm serves for all, since its projections are plain linear layers;
# torchvision's attention stores its input projection as a bare parameter.
ARCHITECTURES = {
    "vit_b_16": "vit_base_patch16_224",
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
}
# Patterns of torchvision's names, and timm's names for them; applied in this order.
RENAMED = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)


class VisionTransformer(Backbone):
    """Blocks block_0, block_1, ... of tokens (B, 1 + patches, D), the class token first.

    With `final_norm` the network's last norm is applied to the output of any block, as in DINOv2's
    `get_intermediate_layers`. Images may have any integer number of patches: position embeddings
    are interpolated once, when weights are loaded. `pretrained`: `imagenet` (ViT-B/16), `dinov2`,
    `none`, or a file in the published format; unavailable weights are an error.
    """

    def __init__(
        self,
        info: DataInfo,
        network: Literal[
            "vit_b_16", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"
        ],
        pretrained: str = "none",
        final_norm: bool = True,
        trainable: str = "all",
    ) -> None:
        super().__init__()
        self.trainable = trainable
        import timm

        channels, height, width = info.shape
        patch = 16 if network == "vit_b_16" else 14
        if channels != 3 or height % patch or width % patch:
            raise ValueError(
                f"{network} needs images with 3 channels and sides that are multiples of {patch}"
                f" pixels, not {channels} x {height} x {width}"
            )
        model: Any = timm.create_model(
            ARCHITECTURES[network], num_classes=0, img_size=(height, width)
        )
        if pretrained != "none":
            state = self.published(network=network).state(pretrained)
            convert = functools.partial(_converted, model=model, network=network)
            fill(model, state, pretrained, network, heads=("head", "heads"), convert=convert)
        self.patch_embed, self.cls_token = model.patch_embed, model.cls_token
        self.pos_embed, self.blocks = model.pos_embed, model.blocks
        self.norm = model.norm if final_norm else nn.Identity()
        self.layers = tuple(f"block_{i}" for i in range(len(self.blocks)))
        self.dims = dict.fromkeys(self.layers, model.embed_dim)
        self.kinds = dict.fromkeys(self.layers, "tokens")

    @classmethod
    def published(cls, **arguments: Any) -> Published:
        """Return the ImageNet weights of torchvision, or those of DINOv2."""
        network = arguments["network"]
        if network == "vit_b_16":
            from torchvision.models import ViT_B_16_Weights

            return on_the_web("imagenet", ViT_B_16_Weights.IMAGENET1K_V1.url)
        from timm.models import get_pretrained_cfg

        found: Any = get_pretrained_cfg(f"{ARCHITECTURES[network]}.lvd142m")
        return on_the_web("dinov2", found.url)

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, T, D) after each block, normalised if `final_norm`."""
        return {name: self.norm(output) for name, output in self._blocks(x, layers).items()}

    def path(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, T, D) after each block; only the output of the last block is normalised."""
        outputs = self._blocks(x, layers)
        last = self.layers[-1]
        return outputs | ({last: self.norm(outputs[last])} if last in outputs else {})

    def _blocks(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        z = self.patch_embed(x)
        z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], dim=1) + self.pos_embed
        return follow(z, zip(self.layers, self.blocks, strict=True), layers)


def _converted(state: State, *, model: Any, network: str) -> State:
    """Return weights in the format they were published in, or in timm's, as timm's."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = _renamed(state)
    if network != "vit_b_16" and "pos_embed" in state:
        state["pos_embed"] = _interpolated(state["pos_embed"], model.patch_embed.grid_size)
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.shape == model.patch_embed.proj.weight.shape:
        # Only for patches of the right size: the filter would resample those of another network.
        state = checkpoint_filter_fn(state, model)
    return state


def _renamed(state: State) -> State:
    """Return torchvision's names as timm's."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _interpolated(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate DINOv2's position embeddings (1, 1 + n^2, D) to `grid`, as its own code does.

    That code adds a tenth of a patch to the size of the grid and does not antialias, so timm's
    resampling would give slightly different features.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side) or positions.dim() != 3 or side * side != positions.shape[1] - 1:
        return positions
    token, patches = positions[:, :1], positions[:, 1:]
    patches = F.interpolate(
        patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float(),
        scale_factor=tuple((length + 0.1) / side for length in grid),
        mode="bicubic",
    )
    return torch.cat([token, patches.flatten(2).transpose(1, 2).to(token.dtype)], dim=1)
