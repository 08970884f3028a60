"""The contract of a backbone, for every file in conf/backbone, and what each of them is."""

import copy
import math
import pickle
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from training import read

from spurcor.backbones import vit
from spurcor.backbones.cifar_resnet import CifarResNet
from spurcor.backbones.lenet import LeNet
from spurcor.backbones.mlp import Mlp
from spurcor.backbones.resnet import ResNet
from spurcor.backbones.small_cnn import SmallCnn
from spurcor.backbones.vgg_attention import VggAttention
from spurcor.backbones.vit import VisionTransformer
from spurcor.config.nodes import Node
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.errors import UserError
from spurcor.models.published import Published
from spurcor.runs import build
from spurcor.system.places import CONF

# timm's, of whose networks any can be chosen, have tests of their own.
NAMES = sorted(
    path.stem
    for path in (CONF / "backbone").glob("*.yaml")
    if "backbones.timm.Timm" not in path.read_text()
)
VITS = {name: (16 if name == "vit_b_16" else 14) for name in vit.ARCHITECTURES}  # and their patches
SPEC = GroupSpec(("a", "b"), ("x", "y"))
DEPTH, WIDTH = 3, 48  # of the vision transformers that run here
create_model = timm.create_model


def make_info(channels=3, height=32, width=24):
    return DataInfo(SPEC, (channels, height, width), torch.ones(4, dtype=torch.int64))


def small_model(name, **options):
    """timm's architecture with fewer and narrower blocks, which count like the others."""
    scale = {"init_values": 1.0} if "dinov2" in name else {}
    return create_model(name, embed_dim=WIDTH, depth=DEPTH, num_heads=2, **scale, **options)


def make(name, info, **options):
    tree = yaml.safe_load((CONF / "backbone" / f"{name}.yaml").read_text())
    if "pretrained" in tree:
        tree["pretrained"] = "none"
    torch.manual_seed(0)
    return Node("backbone", tree.pop("_target_"), {**tree, **options}).build(info=info)


def make_small(name, **options):
    """A backbone of a few milliseconds, and the shape of its images."""
    height, width = (2 * VITS[name], 3 * VITS[name]) if name in VITS else (32, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small_model)
        return make(name, make_info(3, height, width), **options), (3, height, width)


@pytest.fixture(scope="module", params=NAMES)
def made(request):
    backbone, shape = make_small(request.param)
    return backbone.eval(), torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone(made):
    return made[0].eval()


@pytest.fixture
def x(made):
    return made[1]


def poolings(backbone, layer):
    """Every pooling that a layer has, and how much longer than D the vector is."""
    return {
        "map": {None: 1, "avg": 1, "grid1": 1, "grid2": 4, "grid3": 9},
        "tokens": dict.fromkeys((None, "cls_token", "mean_pool_patch", "mean_pool_all"), 1),
        "vector": {None: 1},
    }[backbone.kinds[layer]]


def test_sizes_are_known_before_a_forward_pass(backbone):
    assert list(backbone.dims) == list(backbone.kinds) == list(backbone.layers)
    assert backbone.dim == backbone.dims[backbone.layers[-1]] == backbone.size(-1)
    assert len(set(backbone.layers)) == len(backbone.layers)
    for layer in backbone.layers:
        assert backbone.size(layer) == backbone.dims[layer]


@torch.no_grad()
def test_every_layer_has_the_size_it_claims_by_every_pooling(backbone, x):
    known = {pooling for layer in backbone.layers for pooling in poolings(backbone, layer)}
    for pooling in known:
        layers = [name for name in backbone.layers if pooling in poolings(backbone, name)]
        for layer, value in backbone.features(x, layers, pooling).items():
            size = backbone.size(layer, pooling)
            assert value.shape == (3, size), (layer, pooling)
            assert size == poolings(backbone, layer)[pooling] * backbone.dims[layer]
            assert value.dtype == torch.float32
            assert value.isfinite().all()
            assert value.std(0).max() > 0, f"{layer} does not depend on the input"


def pooled_by_hand(kind, value, pooling):
    if kind == "map":
        k = int(pooling[4:]) if pooling and pooling != "avg" else 1
        height, width = value.shape[2:]
        cells = [
            value[:, :, i * height // k : -(-(i + 1) * height // k)][
                ..., j * width // k : -(-(j + 1) * width // k)
            ].mean(dim=(2, 3))
            for i in range(k)
            for j in range(k)
        ]
        return torch.stack(cells, dim=2).flatten(1)
    if kind == "tokens":
        first, others = value[:, 0], value[:, 1:].mean(1)
        count = value.shape[1] - 1
        both = (first + count * others) / (count + 1)
        return {"mean_pool_patch": others, "mean_pool_all": both}.get(pooling, first)
    return value


@torch.no_grad()
def test_features_are_pooled_activations(backbone, x):
    activations = backbone.activations(x, backbone.layers)
    assert list(activations) == list(backbone.layers)
    features = backbone.features(x, backbone.layers)
    dimensions = {"map": 4, "tokens": 3, "vector": 2}
    for layer, value in activations.items():
        kind = backbone.kinds[layer]
        assert value.dim() == dimensions[kind]
        assert value.shape[2 if kind == "tokens" else 1] == backbone.dims[layer]
        torch.testing.assert_close(features[layer], pooled_by_hand(kind, value, None))
        for pooling in poolings(backbone, layer):
            found = backbone.pooled(layer, value, pooling)
            expected = pooled_by_hand(kind, value, pooling)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_activations_are_what_the_modules_of_that_name_give(backbone, x):
    for i, layer in enumerate(backbone.layers):
        path, after = layer, nn.Identity()
        if isinstance(backbone, Mlp):
            path, after = f"hidden.{i}", backbone.phi
        elif isinstance(backbone, VisionTransformer):
            path, after = f"blocks.{i}", backbone.norm
        if layer == "input":
            assert torch.equal(backbone.activations(x, [layer])[layer], x.flatten(1))
            continue
        seen = []
        module = backbone.get_submodule(path)
        handle = module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        found = backbone.activations(x, [layer])[layer]
        handle.remove()
        assert len(seen) == 1
        assert torch.equal(found, after(seen[0]))


@torch.no_grad()
def test_nothing_is_computed_beyond_the_last_layer_asked_for(backbone, x):
    if isinstance(backbone, Mlp):
        later = list(backbone.hidden)[1:]
    elif isinstance(backbone, VisionTransformer):
        later = list(backbone.blocks)[1:]
    else:
        later = [backbone.get_submodule(name) for name in backbone.layers[1:]]
    ran = []
    handles = [m.register_forward_hook(lambda *args: ran.append(args[0])) for m in later]
    backbone.features(x, [0])
    assert not ran
    backbone.features(x, [-1])
    assert len(ran) == len(later)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_forward_is_the_last_layer(backbone, x):
    last = backbone.layers[-1]
    assert torch.equal(backbone(x), backbone.features(x, [last])[last])


@torch.no_grad()
def test_only_the_layers_asked_for_come_back_and_alone_as_together(backbone, x):
    together = backbone.features(x, backbone.layers[::-1])
    assert list(together) == list(backbone.layers[::-1])
    assert list(backbone.activations(x, backbone.layers[::-1])) == list(together)
    for i, name in enumerate(backbone.layers):
        alone = backbone.features(x, [name, i])
        assert list(alone) == [name, i]
        assert torch.equal(alone[name], alone[i])
        torch.testing.assert_close(alone[name], together[name])


def test_layers_go_by_name_or_index(backbone):
    for i, name in enumerate(backbone.layers):
        assert backbone.layer(name) == backbone.layer(i) == name
    assert backbone.layer(-1) == backbone.layer("last_hidden") == backbone.layers[-1]
    assert backbone.layer(-len(backbone.layers)) == backbone.layers[0]


def test_an_unknown_layer_is_refused(backbone, x):
    count = len(backbone.layers)
    for name in ("conv9", count, -count - 1):
        for ask in (backbone.layer, backbone.size, lambda name: backbone.features(x, [name])):
            with pytest.raises(UserError, match=f"layer={name} .*{', '.join(backbone.layers)}"):
                ask(name)


def test_a_pooling_that_a_layer_does_not_have_is_refused(backbone):
    have = {
        "map": "avg, grid<k>",
        "tokens": "cls_token, mean_pool_patch, mean_pool_all",
        "vector": "null",
    }
    for layer in backbone.layers:
        others = {"avg", "grid2", "cls_token", "mean_pool_patch", "mean_pool_all"}
        others -= poolings(backbone, layer).keys()
        for pooling in ("max", "grid0", "grid", "grid<k>x", "grid-2", *others):
            match = (
                rf"pooling={pooling} does not fit layer={layer}; .*{have[backbone.kinds[layer]]}"
            )
            with pytest.raises(UserError, match=match):
                backbone.size(layer, pooling)
            with pytest.raises(UserError, match=match):
                backbone.features(None, [layer], pooling)  # before anything is computed


@torch.no_grad()
def test_evaluation_moves_no_statistics_and_draws_nothing(backbone, x):
    backbone.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    first = backbone.features(x, backbone.layers)
    second = backbone.features(x, backbone.layers)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.items():
        assert torch.equal(value, second[name])
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    if any("running_mean" in name for name in before):  # in training they would have moved
        twin = copy.deepcopy(backbone).train()
        twin(x)
        moved = [n for n, v in twin.state_dict().items() if not torch.equal(v, before[n])]
        assert moved


def test_gradients_of_the_output_reach_every_parameter_and_the_input(backbone, x):
    backbone.zero_grad()
    x = x.clone().requires_grad_()
    z = backbone(x)
    (z * torch.randn_like(z)).sum().backward()
    assert x.grad.abs().max() > 0
    for name, weight in backbone.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name
    backbone.zero_grad()


def test_layers_lie_on_the_way_to_the_output(made):
    """What gradient maps differentiate; a ViT's are so without the last norm on top of each."""
    backbone, x = made
    if isinstance(backbone, VisionTransformer):
        backbone, _ = make_small(next(n for n in VITS if "dino" in n), final_norm=False)
        x = torch.randn(2, 3, 28, 42)
    backbone.eval()
    if "input" in backbone.layers:
        return
    outputs = backbone.activations(x, backbone.layers)
    last = backbone.layers[-1]
    score = backbone.pooled(last, outputs[last]).square().sum()
    for name, grad in zip(
        backbone.layers, torch.autograd.grad(score, list(outputs.values())), strict=True
    ):
        assert grad.abs().max() > 0, name


@torch.no_grad()
def test_features_are_float32_under_bf16(backbone, x):
    exact = backbone(x)
    backbone.autocast = torch.bfloat16
    try:
        rough = backbone(x)
    finally:
        backbone.autocast = None
    assert rough.dtype == torch.float32
    if list(backbone.parameters()):
        assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.05 * float(exact.abs().max()), rtol=0.05)


@torch.no_grad()
def test_channels_last_changes_the_layout_only(backbone, x):
    expected = backbone(x)
    scale = float(expected.abs().max())
    backbone.channels_last = True
    try:
        torch.testing.assert_close(backbone(x), expected, atol=1e-4 * scale, rtol=1e-4)
    finally:
        backbone.channels_last = False


def test_every_backbone_trains_in_bf16_and_channels_last(made):
    backbone = copy.deepcopy(made[0]).train().to(memory_format=torch.channels_last)
    backbone.autocast, backbone.channels_last = torch.bfloat16, True
    z = backbone(made[1])
    assert z.dtype == torch.float32
    if not z.requires_grad:
        return  # nothing to train
    (z * torch.randn_like(z)).sum().backward()
    for name, weight in backbone.named_parameters():
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


@torch.no_grad()
def test_every_backbone_is_one_graph_to_the_compiler(backbone, x):
    expected = backbone(x)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_a_compiled_backbone_trains_like_another():
    options = ("backbone=mlp", "backbone.width=8", "train.num_threads=1")
    grads = []
    for compiled in ("false", "true"):
        splits, method = build.build(read(*options, f"train.compile={compiled}"))
        assert (method.backbone._compiled_call_impl is not None) == (compiled == "true")
        batch = splits["train"].fetch(torch.arange(8))
        method.losses(method.predict(splits.transform(batch.x)), batch.y).mean().backward()
        grads.append([weight.grad for weight in method.weights()])
    torch.testing.assert_close(grads[0], grads[1])


# --- each of them ---------------------------------------------------------------------------------

PHI = {
    "relu": lambda u: max(u, 0.0),
    "gelu": lambda u: u * (1 + math.erf(u / math.sqrt(2))) / 2,
    "tanh": math.tanh,
    "identity": lambda u: u,
    "silu": lambda u: u / (1 + math.exp(-u)),
    "softplus": lambda u: math.log(1 + math.exp(u)),
}


@torch.no_grad()
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("parametrization", ["standard", "mup", "ntp"])
@pytest.mark.parametrize("activation", PHI)
def test_mlp_by_hand(activation, parametrization, skip):
    torch.manual_seed(0)
    options = {"activation": activation, "parametrization": parametrization, "skip": skip}
    mlp, x = Mlp(make_info(1, 2, 2), width=3, depth=3, **options), torch.randn(2, 1, 2, 2)
    head = mlp.head(2)
    root = math.sqrt(3)
    first, hidden, last = {"standard": (1, 1, 1), "mup": (root, 1, 1 / root)}.get(
        parametrization, (1, 1 / root, 1 / root)
    )
    scales = [first, hidden, hidden, last]
    biases = {name for name, _ in [*mlp.named_parameters(), *head.named_parameters()]}
    assert ("hidden.0.bias" in biases and "bias" in biases) == (parametrization == "standard")
    for i in range(2):
        z = x[i].flatten().tolist()
        for layer, linear in enumerate([*mlp.hidden, head]):
            u = [
                scales[layer] * sum(a * b for a, b in zip(row, z, strict=True))
                for row in linear.weight.tolist()
            ]
            if parametrization == "standard":
                u = [a + b for a, b in zip(u, linear.bias.tolist(), strict=True)]
            if skip and 0 < layer < 3:
                u = [a + b for a, b in zip(u, z, strict=True)]
            if layer == 3:
                found = head(mlp(x))[i]
                assert found.tolist() == pytest.approx(u, abs=1e-5)
                continue
            z = [PHI[activation](a) for a in u]
            name = f"layer_{layer + 1}"
            assert mlp.features(x, [name])[name][i].tolist() == pytest.approx(z, abs=1e-5)


def test_mlp_draws_weights_as_its_parametrisation_says():
    m = 400
    for parametrization, std in (("mup", m**-0.5), ("ntp", 1.0)):
        torch.manual_seed(0)
        mlp = Mlp(make_info(1, 20, 20), width=m, depth=2, parametrization=parametrization)
        for linear in (*mlp.hidden, mlp.head(40)):
            assert float(linear.weight.detach().std()) == pytest.approx(std, rel=0.02)


WIDTHS = (64, 256, 1024)


def slope(values):
    """Exponent of a power law in the width, by least squares."""
    u = torch.tensor(WIDTHS).log()
    v = torch.tensor(values).log()
    u, v = u - u.mean(), v - v.mean()
    return float(u @ v / (u @ u))


def changes(width, parametrization, activation):
    """Size of f at the start; of the change of f and of features by one step of lr 0.5."""
    sums = torch.zeros(3, dtype=torch.float64)
    for seed in range(24):
        torch.manual_seed(seed)
        options = {"activation": activation, "parametrization": parametrization}
        mlp = Mlp(make_info(1, 4, 5), width=width, depth=3, **options)
        head = mlp.head(1)
        x = F.normalize(torch.randn(8, 20))
        y = torch.tensor([1.0, -1.0]).repeat(4)
        weights = [*mlp.parameters(), *head.parameters()]
        z = mlp(x)
        f = head(z)[:, 0]
        grads = torch.autograd.grad(F.softplus(-y * f).mean(), weights)
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight -= 0.5 * grad
            moved = mlp(x)
            parts = (f, head(moved)[:, 0] - f, moved - z)
            sums += torch.stack([part.double().square().mean() for part in parts])
    return (sums / 24).sqrt().tolist()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mup_learns_features_at_any_width_and_ntp_does_not(activation):
    """f at the start, its first change, and the change of a feature, as powers of the width."""
    expected = {"mup": (-0.5, 0.0, 0.0), "ntp": (0.0, 0.0, -0.5)}
    for parametrization, powers in expected.items():
        found = zip(*(changes(m, parametrization, activation) for m in WIDTHS), strict=True)
        assert [slope(values) for values in found] == pytest.approx(powers, abs=0.12)


def test_a_final_layer_stays_as_drawn():
    for parametrization in ("standard", "mup", "ntp"):
        fixed = Mlp(make_info(), 4, 1, parametrization=parametrization, fix_final_layer=True)
        free = Mlp(make_info(), 4, 1, parametrization=parametrization)
        assert not any(weight.requires_grad for weight in fixed.head(2).parameters())
        assert all(weight.requires_grad for weight in fixed.parameters())
        assert all(weight.requires_grad for weight in free.head(2).parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"depth": -1},
        {"depth": 0, "parametrization": "mup"},
        {"depth": 0, "fix_final_layer": True},
    ],
)
def test_mlp_refuses_what_makes_no_network(options):
    with pytest.raises(ValueError, match=r"at least [01]|depth=0 has none"):
        Mlp(make_info(), **options)


@torch.no_grad()
def test_linear_reads_images_and_features_alike():
    linear = make("linear", make_info(2, 3, 4))
    assert linear.size(-1) == 24
    x = torch.randn(5, 2, 3, 4)
    assert torch.equal(linear(x), x.flatten(1))
    table = make("linear", make_info(8, 1, 1))
    table.channels_last = True
    assert torch.equal(table(x.reshape(-1, 8)), x.reshape(-1, 8))


@torch.no_grad()
def test_lenet_as_published_on_mnist():
    torch.manual_seed(0)
    net, x = LeNet(make_info(1, 28, 28)), torch.randn(2, 1, 28, 28)
    assert sum(w.numel() for w in net.parameters()) == 320 + 18496 + 3136 * 64 + 64
    maps = net.activations(x, net.layers)
    assert maps["conv1"].shape == (2, 32, 28, 28)
    assert maps["conv2"].shape == (2, 64, 14, 14)
    z = F.max_pool2d(F.conv2d(x, *net.conv1[0].parameters(), padding=1).relu(), 2)
    z = F.max_pool2d(F.conv2d(z, *net.conv2[0].parameters(), padding=1).relu(), 2)
    z = F.linear(z.flatten(1), *net.hidden[0].parameters()).relu()
    torch.testing.assert_close(net(x), z)


@torch.no_grad()
def test_vgg_attention_as_published_on_cifar():
    torch.manual_seed(0)
    net, x = VggAttention(make_info(3, 32, 32)), torch.randn(2, 3, 32, 32)
    maps = net.activations(x, net.layers)
    assert [tuple(maps[f"block{i}"].shape[1:]) for i in (1, 2)] == [(32, 32, 32), (64, 16, 16)]
    assert maps["attention"].shape == (2, 128, 8, 8)
    assert maps["attention"].min() == 0
    assert net.hidden1[0].in_features == 2048
    assert net.dim == 256
    for layer in ("hidden1", "hidden2"):  # dropped by half in training, and then twice as large
        values = net.train().features(x, [layer])[layer]
        assert 0.65 < (values == 0).float().mean() < 0.9
        assert (net.eval().features(x, [layer])[layer] == 0).float().mean() < 0.65


@torch.no_grad()
def test_resnet32_as_published_on_cifar():
    net = CifarResNet(make_info(3, 32, 32)).eval()
    assert sum(w.numel() for w in net.parameters()) + 64 * 10 + 10 == 464_154
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 32
    maps = net.activations(torch.randn(2, 3, 32, 32), net.layers)
    shapes = [tuple(maps[f"layer{i}"].shape[1:]) for i in (1, 2, 3)]
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    for convolution in convolutions[3:6]:
        fan_in = 9 * convolution.in_channels
        assert float(convolution.weight.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)


@torch.no_grad()
def test_shortcuts_of_resnet32_subsample_and_fill_with_zeros():
    shortcut = CifarResNet(make_info(3, 8, 8)).layer2[0].downsample
    x = torch.randn(2, 16, 5, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 3, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@torch.no_grad()
def test_small_cnn_as_published_on_mnist():
    cnn = SmallCnn(make_info(1, 28, 28), padding=0)
    x = torch.zeros(2, 1, 28, 28)
    maps = cnn.activations(x, cnn.layers)
    assert maps["block1"].shape == (2, 16, 24, 24)
    assert maps["block2"].shape == (2, 32, 8, 8)
    assert maps["hidden"].shape == (2, 256)


def test_the_network_of_biased_mnist_has_the_weights_of_the_published_one():
    node = read("dataset=biased_mnist").backbone
    network = node.build(info=make_info(3, 28, 28))
    weights = [*network.parameters(), *network.head(2).parameters()]
    assert sum(map(torch.numel, weights)) == 149_202
    norm = network.hidden[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert isinstance(network.hidden[2], torch.nn.ReLU)


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


def test_older_files_without_counts_of_batches_load(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    ours = ResNet(make_info(), 18, str(tmp_path / "weights.pth"))
    assert torch.equal(ours.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_a_missing_weights_file_is_told(tmp_path):
    match = r"backbone\.pretrained=.*none\.pth .*imagenet, none, .*resnet18-\w+"
    with pytest.raises(UserError, match=match):
        ResNet(make_info(), 18, str(tmp_path / "none.pth"))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "code"])
def test_an_unreadable_weights_file_is_told_and_not_executed(content, suffix, tmp_path):
    path, victim = tmp_path / f"weights.{suffix}", tmp_path / "executed"
    if content == "code":
        torch.save({"conv1.weight": Payload(victim)}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"hello, these are no weights")
    with pytest.raises(UserError, match=r"backbone\.pretrained=.*cannot be read"):
        ResNet(make_info(), 18, str(path))
    assert not victim.exists()


def test_weights_of_something_else_are_told_with_the_first_names_that_differ(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    match = (
        r"weights of ResNet-18: layer1\.0\.conv1\.weight is 64 x 64 x 1 x 1, not"
        r" 64 x 64 x 3 x 3, layer1.*, layer2.*, \.\.\.$"
    )
    with pytest.raises(UserError, match=match):
        ResNet(make_info(), 18, str(path))
    torch.save(5, path)
    with pytest.raises(UserError, match="is not a state dict of tensors"):
        ResNet(make_info(), 18, str(path))
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({**state, "layer1.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"ResNet-18: layer1.extra is unknown$"):
        ResNet(make_info(), 18, str(path))
    del state["layer4.1.bn2.running_var"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"ResNet-18: layer4\.1\.bn2\.running_var is missing$"):
        ResNet(make_info(), 18, str(path))


FILES = {
    "resnet18": r"resnet18-\w+\.pth",
    "resnet50": r"resnet50-\w+\.pth",
    "vit_b_16": r"vit_b_16-\w+\.pth",
    **{name: rf"{name}_pretrain\.pth" for name in VITS if name.startswith("dinov2")},
}


@pytest.mark.parametrize("name", FILES)
def test_weights_that_cannot_be_downloaded_are_told_and_never_random(name, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    tree = yaml.safe_load((CONF / "backbone" / f"{name}.yaml").read_text())
    tree["pretrained"] = "dinov2" if name.startswith("dinov2") else "imagenet"
    file = FILES[name]
    match = rf"pretrained=\w+ needs {file}, .*{tmp_path}.*get it from https://\S+/{file} and put it"
    with torch.device("meta"), pytest.raises(UserError, match=match) as refused:
        Node("backbone", tree.pop("_target_"), tree).build(info=make_info(3, 224, 224))
    assert "\n" not in str(refused.value)


def test_weights_in_the_cache_of_torch_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", None)
    monkeypatch.setattr(timm, "create_model", small_model)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = dinov2_state(DEPTH, WIDTH, 4 * WIDTH)
    torch.save(state, folder / "dinov2_vits14_pretrain.pth")
    net = VisionTransformer(make_info(3, 28, 42), "dinov2_vits14", "dinov2")
    assert torch.equal(net.cls_token, state["cls_token"])
    (folder / "dinov2_vits14_pretrain.pth").write_bytes(b"half of a download")
    with pytest.raises(UserError, match="needs dinov2_vits14_pretrain"):
        VisionTransformer(make_info(3, 28, 42), "dinov2_vits14", "dinov2")


def test_only_weights_that_were_published_have_a_name():
    with pytest.raises(UserError, match=r"pretrained=imagenet .*dinov2, none"):
        VisionTransformer(make_info(3, 28, 28), "dinov2_vits14", "imagenet")
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"pretrained=dinov2 .*imagenet, none"),
    ):
        VisionTransformer(make_info(3, 32, 32), "vit_b_16", "dinov2")


def test_pickles_of_code_really_would_execute(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


# --- vision transformers --------------------------------------------------------------------------

# Blocks, D, hidden units of a block, and parameters of the published networks, in millions.
PUBLISHED = {
    "dinov2_vits14": (12, 384, 1536, 22.1),
    "dinov2_vitb14": (12, 768, 3072, 86.6),
    "dinov2_vitl14": (24, 1024, 4096, 304.4),
    "dinov2_vitg14": (40, 1536, 4096, 1136.5),
}


def dinov2_state(depth, width, hidden, gated=False):
    """A state dict with the names and shapes in which DINOv2 was published, at 518 pixels."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + 37 * 37, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    up, down, inner = ("w12", "w3", 2 * hidden) if gated else ("fc1", "fc2", hidden)
    for i in range(depth):
        linear = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            f"mlp.{up}": (inner, width),
            f"mlp.{down}": (width, hidden),
        }
        for name, shape in linear.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = (
                shape,
                shape[:1],
            )
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{i}.{name}"] = (width,)
        shapes[f"blocks.{i}.ls1.gamma"] = shapes[f"blocks.{i}.ls2.gamma"] = (width,)
    generator = None if torch.empty(0).is_meta else torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dinov2_tokens(state, x, depth, heads, gated):
    """Tokens after every block, by the equations of the published network."""

    def linear(name, z):
        return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, z):
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return z * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attend(i, z):
        q, k, v = linear(f"blocks.{i}.attn.qkv", z).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))

    def feed(i, z):
        if not gated:
            return linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", z)))
        gate, value = linear(f"blocks.{i}.mlp.w12", z).chunk(2, dim=-1)
        return linear(f"blocks.{i}.mlp.w3", F.silu(gate) * value)

    height, width = x.shape[2] // 14, x.shape[3] // 14
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    z = F.conv2d(x, weight, bias, stride=14).flatten(2).transpose(1, 2)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / 37, (width + 0.1) / 37)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    z = torch.cat([state["cls_token"].expand(len(z), -1, -1), z], dim=1)
    z = z + torch.cat([state["pos_embed"][:, :1], grid], dim=1)
    outputs = []
    for i in range(depth):
        z = z + state[f"blocks.{i}.ls1.gamma"] * attend(i, norm(f"blocks.{i}.norm1", z))
        z = z + state[f"blocks.{i}.ls2.gamma"] * feed(i, norm(f"blocks.{i}.norm2", z))
        outputs.append((z, norm("norm", z)))
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vitg14"])
def test_dinov2_computes_what_was_published_from_what_was_published(name, suffix, tmp_path):
    gated, path = name == "dinov2_vitg14", tmp_path / f"weights.{suffix}"
    state = dinov2_state(DEPTH, WIDTH, WIDTH * 8 // 3 if gated else 4 * WIDTH, gated)
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    net, shape = make_small(name, pretrained=str(path))
    raw, _ = make_small(name, pretrained=str(path), final_norm=False)
    x = torch.randn(2, *shape)
    expected = dinov2_tokens(state, x, DEPTH, heads=2, gated=gated)
    found, bare = net.activations(x, net.layers), raw.activations(x, raw.layers)
    for layer, (tokens, normed) in zip(net.layers, expected, strict=True):
        torch.testing.assert_close(bare[layer], tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[layer], normed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(x), expected[-1][1][:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dinov2_at_518_pixels_has_the_published_positions():
    positions = torch.randn(1, 1 + 37 * 37, 8)
    assert torch.equal(vit._interpolated(positions, (37, 37)), positions)
    assert vit._interpolated(positions, (16, 16)).shape == (1, 257, 8)
    assert vit._interpolated(positions, (16, 20)).shape == (1, 321, 8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_dinov2_at_full_size_takes_the_published_state(name, monkeypatch):
    depth, width, hidden, millions = PUBLISHED[name]
    with torch.device("meta"):
        state = dinov2_state(depth, width, hidden, gated=name == "dinov2_vitg14")
        monkeypatch.setattr(Published, "state", lambda *args: dict(state))
        net = make(name, make_info(3, 224, 224), pretrained="dinov2")
        tokens = net.activations(torch.zeros(1, 3, 224, 224), ["block_0", net.layers[-1]])
    assert sum(value.numel() for value in state.values()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert net.layers[-1] == f"block_{depth - 1}"
    assert net.dim == width
    assert all(value.shape == (1, 257, width) for value in tokens.values())


def torchvision_vit(patch=16):
    """torchvision's transformer, small, for images of 2 x 2 patches."""
    torch.manual_seed(0)
    sizes = {"num_layers": DEPTH, "num_heads": 2, "hidden_dim": WIDTH, "mlp_dim": 4 * WIDTH}
    model = torchvision.models.VisionTransformer(image_size=2 * patch, patch_size=patch, **sizes)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("older_names", [False, True])
def test_vit_b_16_is_that_of_torchvision(older_names, tmp_path):
    network = torchvision_vit()
    for weight in network.parameters():
        weight += 0.1 * torch.randn_like(weight)
    state = network.state_dict()
    if older_names:
        for new, old in ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2.")):
            state = {name.replace(new, old): value for name, value in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small_model)
        ours = make("vit_b_16", make_info(3, 32, 32), pretrained=str(tmp_path / "weights.pth"))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.heads(ours(x)), network(x), atol=1e-5, rtol=1e-4)
    seen = []
    network.encoder.layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
    network(x)
    found = ours.activations(x, ["block_1"])["block_1"]
    torch.testing.assert_close(found, network.encoder.ln(seen[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pixels", [224, 384])
def test_vit_b_16_at_full_size_takes_the_published_state(pixels, monkeypatch):
    with torch.device("meta"):
        state = torchvision.models.vit_b_16().state_dict()
        monkeypatch.setattr(Published, "state", lambda *args: dict(state))
        net = make("vit_b_16", make_info(3, pixels, pixels), pretrained="imagenet")
        tokens = net.activations(torch.zeros(1, 3, pixels, pixels), ["block_11"])["block_11"]
    assert sum(value.numel() for value in state.values()) == 86_567_656
    assert net.layers[-1] == "block_11"
    assert tokens.shape == (1, 1 + (pixels // 16) ** 2, 768)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("dinov2_vits14", lambda: dinov2_state(DEPTH, WIDTH + 2, 4 * WIDTH)),
        ("dinov2_vits14", lambda: dinov2_state(DEPTH - 1, WIDTH, 4 * WIDTH)),
        ("dinov2_vits14", lambda: dinov2_state(DEPTH + 1, WIDTH, 4 * WIDTH)),
        ("dinov2_vits14", lambda: dinov2_state(DEPTH, WIDTH, 2 * WIDTH, gated=True)),
        ("vit_b_16", lambda: dinov2_state(DEPTH, WIDTH, 4 * WIDTH)),
        ("vit_b_16", lambda: torchvision.models.resnet18(weights=None).state_dict()),
        ("vit_b_16", lambda: torchvision_vit(patch=32).state_dict()),
        ("dinov2_vits14", lambda: torchvision_vit().state_dict()),
    ],
)
def test_weights_of_another_transformer_are_told(name, other, tmp_path):
    torch.save(other(), tmp_path / "weights.pth")
    match = rf"weights\.pth .*weights of {name}: \S+ is "
    with pytest.raises(UserError, match=match):
        make_small(name, pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 30), (3, 27, 28)])
def test_a_transformer_takes_whole_patches_of_colour(shape):
    match = rf"dinov2_vits14 .*3 channels.* 14 pixels, not {shape[0]} x "
    with pytest.raises(ValueError, match=match):
        VisionTransformer(make_info(*shape), "dinov2_vits14")
