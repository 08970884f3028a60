"""Gates on weights: what is drawn, what is deployed, which weights have one, what is written."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spurcor.backbones.vit import VisionTransformer
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.models import weights
from spurcor.pruning import gates


def network():
    """A convolution, batch norm, torch's own attention and a linear layer."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "attn": nn.MultiheadAttention(4, 2, batch_first=True),
            "last": nn.Linear(4, 2),
        }
    )


def run(net, x):
    z = net["norm"](net["conv"](x)).flatten(2).transpose(1, 2)
    return net["last"](net["attn"](z, z, z, need_weights=False)[0].mean(dim=1))


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def fill(net, value):
    for gate in gates.gates_of(net).values():
        nn.init.constant_(gate.logit, value)


# --- one gate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask_logit", "share"), [("raw", 0.81757), ("sigmoid", 0.69372)])
def test_masks_are_binary_and_drawn_with_the_probability_of_the_formula(mask_logit, share):
    """sigma(1.5) = 0.81757, and sigma(0.81757) = 0.69372."""
    torch.manual_seed(0)
    gate = gates.Gate(torch.ones(400, 500), mask_logit)
    drawn = gate(torch.ones(400, 500))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert float(drawn.detach().mean()) == pytest.approx(share, abs=4 * 0.5 / 447)
    assert not torch.equal(drawn, gate(torch.ones(400, 500)))  # every reading is a draw


@pytest.mark.parametrize("mask_logit", ["raw", "sigmoid"])
def test_the_gradient_is_that_of_the_relaxed_mask(mask_logit):
    """s = sigma(l + xi) with the same noise, differentiated by itself."""
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(3))
    gate = gates.Gate(weight, mask_logit)
    torch.manual_seed(5)
    gated = gate(weight)
    gated.sum().backward()
    torch.manual_seed(5)
    u = torch.rand_like(weight).double()
    pi = gate.logit.detach().double().requires_grad_()
    location = pi.sigmoid() if mask_logit == "sigmoid" else pi
    s = (location + torch.log(u / (1 - u))).sigmoid()
    (weight.double() * s).sum().backward()
    torch.testing.assert_close(gate.logit.grad.double(), pi.grad, atol=1e-6, rtol=1e-4)
    assert (gate.logit.grad != 0).all()
    assert torch.equal(gated != 0, s > 0.5)


def test_the_noise_is_logistic():
    """Upstream's -log(log u1 / log u0) of two uniforms has the distribution of one logit(u)."""
    generator = torch.Generator().manual_seed(0)
    u0, u1 = torch.rand(2, 200_000, generator=generator, dtype=torch.float64)
    upstream = -torch.log(torch.log(u1) / torch.log(u0))
    ours = torch.rand(200_000, generator=generator).logit_(gates.EPSILON).double()
    points = torch.linspace(-4, 4, 9, dtype=torch.float64)
    for point in points:
        expected = float(point.sigmoid())
        for noise in (upstream, ours):
            assert float((noise <= point).double().mean()) == pytest.approx(expected, abs=0.005)


def test_what_is_deployed_does_not_depend_on_chance():
    gate = gates.Gate(torch.ones(2, 2), "sigmoid")
    with torch.no_grad():
        gate.logit.copy_(torch.tensor([[0.0, -1e-6], [3.0, -3.0]]))
    expected = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(gate.eval()(torch.ones(2, 2)), expected)
    gate.train().logit.requires_grad_(False)
    assert torch.equal(gate(torch.ones(2, 2)), expected)


# --- which weights --------------------------------------------------------------------------------


def test_every_weight_of_two_dimensions_has_a_gate_and_nothing_else():
    net = network()
    gates.attach(net, "sigmoid")
    found = {name: gate.logit.numel() for name, gate in gates.gates_of(net).items()}
    assert found == {
        "conv.weight": 4 * 3 * 9,
        "attn.in_proj_weight": 12 * 4,
        "attn.out_proj.weight": 4 * 4,
        "last.weight": 2 * 4,
    }
    assert all((gate.logit == 1.5).all() for gate in gates.gates_of(net).values())


def test_a_transformer_has_gates_on_its_projections_and_not_on_its_positions():
    info = DataInfo(GroupSpec(("a", "b"), ("x", "y")), (3, 28, 28), torch.ones(4))
    net = VisionTransformer(info, "dinov2_vits14")
    gates.attach(net, "sigmoid")
    names = set(gates.gates_of(net))
    assert len(names) == 1 + 12 * 4  # the patches, and four projections of each of twelve blocks
    assert "blocks.3.attn.qkv.weight" in names
    assert not any("pos_embed" in name or "token" in name for name in names)


# --- the masked network ---------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_open_gates_are_the_dense_network(training):
    dense = network()
    gated = copy.deepcopy(dense)
    gates.attach(gated, "raw")
    fill(gated, 20.0)  # 1 - sigma(20) is 2e-9: no draw in training closes one
    for net in (dense, gated):
        net.train(training)
    torch.testing.assert_close(run(gated, X), run(dense, X))


def test_closed_gates_leave_biases_and_batch_norm():
    net = network()
    gates.attach(net, "raw")
    fill(net, -10.0)
    net.eval()
    assert torch.equal(run(net, X), net["last"].bias.expand(5, 2))
    norm = net["norm"]
    z = (net["conv"].bias - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(norm(net["conv"](X))[0, :, 0, 0], z * norm.weight + norm.bias)


def test_a_masked_network_is_the_network_with_zeros_in_its_weights():
    net, plain = network(), network()
    gates.attach(net, "sigmoid")
    generator = torch.Generator().manual_seed(2)
    for name, gate in gates.gates_of(net).items():
        logit = torch.randn(gate.logit.shape, generator=generator)
        gate.logit.data.copy_(logit)
        owner, _, tensor = name.rpartition(".")
        getattr(plain.get_submodule(owner), tensor).data.mul_(logit >= 0)
    assert torch.equal(run(net.eval(), X), run(plain.eval(), X))


# --- names and files ------------------------------------------------------------------------------


def test_plain_weights_come_out_of_a_gated_network_and_go_into_one(tmp_path):
    net = network()
    names = list(net.state_dict())
    gates.attach(net, "sigmoid")
    generator = torch.Generator().manual_seed(2)
    for gate in gates.gates_of(net).values():
        gate.logit.data.copy_(torch.randn(gate.logit.shape, generator=generator))
    net.train()
    state = weights.snapshot(net)
    assert net.training
    assert sorted(state) == sorted(names)
    kept = sum(int(gate.kept.sum()) for gate in gates.gates_of(net).values())
    assert sum(int((state[name] != 0).sum()) for name in gates.gates_of(net)) == kept
    weights.save_weights(tmp_path / "w.safetensors", state)
    expected = run(net.eval(), X)
    plain = network()
    weights.load_weights(plain, tmp_path / "w.safetensors")
    assert torch.equal(run(plain.eval(), X), expected)
    # Other weights in a gated network: what is loaded is what acts.
    torch.manual_seed(9)
    other = nn.ModuleDict({name: copy.deepcopy(part) for name, part in network().items()})
    nn.init.normal_(other["last"].weight)
    weights.save_weights(tmp_path / "other.safetensors", weights.snapshot(other))
    weights.load_weights(net, tmp_path / "other.safetensors")
    assert sorted(net.state_dict()) == sorted(names)
    assert torch.equal(run(net.eval(), X), run(other.eval(), X))


def test_leaving_the_gates_keeps_the_parameters_and_their_optimiser():
    net = network()
    weight = net["last"].weight
    gates.attach(net, "raw")
    fill(net, -1.0)
    weights.make_plain(net)
    assert net["last"].weight is weight
    assert (weight == 0).all()


def test_a_copy_is_a_network_of_its_own():
    net = network()
    gates.attach(net, "raw")
    other = copy.deepcopy(net).eval()
    fill(other, -1.0)
    assert (other["last"].weight == 0).all()
    assert (net.eval()["last"].weight != 0).all()


def test_bf16_and_the_compiler_see_the_gated_weights():
    net = network()
    gates.attach(net, "raw")
    fill(net, 20.0)
    expected = run(net.train(), X)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(net, X)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    compiled = torch.compile(lambda x: run(net, x), backend="eager")
    torch.testing.assert_close(compiled(X), expected)
    fill(net, -20.0)
    torch.testing.assert_close(compiled(X), net["last"].bias.expand(5, 2))
    F.cross_entropy(compiled(X), torch.zeros(5, dtype=torch.long)).backward()
    assert net["last"].parametrizations.weight[0].logit.grad is not None
