"""The contract of a backbone, for every file in conf/backbone."""

import pickle
from urllib.error import URLError

import pytest
import torch
import torchvision
import yaml

from spurcor.backbones.mlp import Mlp
from spurcor.backbones.resnet import ResNet
from spurcor.backbones.small_cnn import SmallCnn
from spurcor.config import CONF, Node
from spurcor.data import DataInfo, GroupSpec
from spurcor.errors import UserError

NAMES = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml"))
SPEC = GroupSpec(("a", "b"), ("x", "y"))


def make_info(channels=3, height=32, width=24):
    return DataInfo(SPEC, (channels, height, width), torch.ones(4, dtype=torch.int64))


def make(name, info):
    tree = yaml.safe_load((CONF / "backbone" / f"{name}.yaml").read_text())
    if "pretrained" in tree:
        tree["pretrained"] = "none"
    torch.manual_seed(0)
    return Node("backbone", tree.pop("_target_"), tree).build(info=info)


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return make(request.param, make_info()).eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 3, 32, 24, generator=torch.Generator().manual_seed(0))


def test_dims_are_known_before_a_forward_pass(backbone):
    assert list(backbone.dims) == list(backbone.layers)
    assert backbone.dim == backbone.dims[backbone.layers[-1]]
    assert len(set(backbone.layers)) == len(backbone.layers)


@torch.no_grad()
def test_every_layer_has_the_dimension_it_claims(backbone, x):
    features = backbone.features(x, backbone.layers)
    assert list(features) == list(backbone.layers)
    for name, value in features.items():
        assert value.shape == (3, backbone.dims[name]), name
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert value.std(0).max() > 0, f"{name} does not depend on the input"


@torch.no_grad()
def test_features_are_pooled_activations(backbone, x):
    activations = backbone.activations(x, backbone.layers)
    features = backbone.features(x, backbone.layers)
    for name, value in activations.items():
        pooled = value.flatten(2).mean(2) if value.dim() == 4 else value
        torch.testing.assert_close(features[name], pooled)


@torch.no_grad()
def test_forward_is_the_last_layer(backbone, x):
    last = backbone.layers[-1]
    assert torch.equal(backbone(x), backbone.features(x, [last])[last])


@torch.no_grad()
def test_only_the_layers_asked_for_come_back_and_alone_as_together(backbone, x):
    together = backbone.features(x, backbone.layers)
    for name in backbone.layers:
        alone = backbone.features(x, [name])
        assert list(alone) == [name]
        torch.testing.assert_close(alone[name], together[name])


def test_layers_go_by_name_or_index(backbone):
    for i, name in enumerate(backbone.layers):
        assert backbone.layer(name) == backbone.layer(i) == name
    assert backbone.layer(-1) == backbone.layers[-1]
    assert backbone.layer(-len(backbone.layers)) == backbone.layers[0]


def test_an_unknown_layer_is_refused(backbone):
    count = len(backbone.layers)
    for name in ("conv9", count, -count - 1):
        with pytest.raises(UserError, match=f"layer={name} .*{backbone.layers[-1]}"):
            backbone.layer(name)


def test_the_output_trains_every_parameter(backbone, x):
    backbone.zero_grad()
    backbone(x).square().sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


@torch.no_grad()
def test_features_are_float32_under_bf16(backbone, x):
    exact = backbone(x)
    backbone.autocast = torch.bfloat16
    try:
        rough = backbone(x)
    finally:
        backbone.autocast = None
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.05 * float(exact.abs().max()), rtol=0.05)


@torch.no_grad()
def test_channels_last_changes_the_layout_only(backbone, x):
    expected = backbone(x)
    backbone.channels_last = True
    try:
        torch.testing.assert_close(backbone(x), expected, atol=1e-5, rtol=1e-4)
    finally:
        backbone.channels_last = False


# --- each of them ---------------------------------------------------------------------------------


@torch.no_grad()
def test_mlp_by_hand():
    torch.manual_seed(0)
    mlp, x = Mlp(make_info(2, 3, 4), width=5, depth=3), torch.randn(6, 2, 3, 4)
    assert mlp.layers == ("layer_1", "layer_2", "layer_3")
    z = x.reshape(6, 24)
    for name, linear in zip(mlp.layers, mlp.hidden, strict=True):
        z = (z @ linear.weight.T + linear.bias).clamp(min=0)
        torch.testing.assert_close(mlp.features(x, [name])[name], z)


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 0}])
def test_mlp_needs_a_unit(options):
    with pytest.raises(ValueError, match="at least 1"):
        Mlp(make_info(), **options)


@torch.no_grad()
def test_small_cnn_as_published_on_mnist():
    cnn = SmallCnn(make_info(1, 28, 28), padding=0)
    x = torch.zeros(2, 1, 28, 28)
    maps = cnn.activations(x, cnn.layers)
    assert maps["block1"].shape == (2, 16, 24, 24)
    assert maps["block2"].shape == (2, 32, 8, 8)
    assert maps["hidden"].shape == (2, 256)


@torch.no_grad()
def test_small_cnn_with_padding_takes_images_of_8_pixels():
    assert SmallCnn(make_info(3, 8, 8))(torch.zeros(2, 3, 8, 8)).shape == (2, 256)


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_that_of_torchvision(depth, tmp_path):
    torch.manual_seed(0)
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    ours = ResNet(make_info(), depth, str(tmp_path / "weights.pth")).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = network(x)
    torch.testing.assert_close(network.fc(ours(x)), expected)
    assert ours.dims["layer1"] == (64 if depth == 18 else 256)
    maps = ours.activations(x, ["layer1", "layer4"])
    assert maps["layer1"].shape[2:] == (16, 16)
    assert maps["layer4"].shape == (2, ours.dim, 2, 2)


def test_resnet_takes_colour_images_only():
    with pytest.raises(ValueError, match="3 channels, not 1"):
        ResNet(make_info(channels=1))


def test_a_missing_weights_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"backbone\.pretrained=.*none\.pth"):
        ResNet(make_info(), 18, str(tmp_path / "none.pth"))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("content", ["empty", "text", "code"])
def test_an_unreadable_weights_file_is_told_and_not_executed(content, tmp_path):
    path, victim = tmp_path / "weights.pth", tmp_path / "executed"
    if content == "code":
        torch.save({"conv1.weight": Payload(victim)}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"hello, these are no weights")
    with pytest.raises(UserError, match=r"backbone\.pretrained="):
        ResNet(make_info(), 18, str(path))
    assert not victim.exists()


@pytest.mark.parametrize("content", ["resnet50", "number"])
def test_weights_of_something_else_are_told(content, tmp_path):
    path = tmp_path / "weights.pth"
    other = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(other if content == "resnet50" else 5, path)
    with pytest.raises(UserError, match=r"backbone\.pretrained="):
        ResNet(make_info(), 18, str(path))


def test_weights_that_cannot_be_downloaded_are_told_and_never_random(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(UserError, match=rf"resnet18-\w+\.pth.*{tmp_path}"):
        ResNet(make_info(), 18, "imagenet")


def test_pickles_of_code_really_would_execute(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()
