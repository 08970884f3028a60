"""MaskTune's maps, masks and phases against plain references."""

import contextlib
import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_contracts import CrashError, StopAt
from torch import nn
from training import read, rows_of, trainer_of, without_time

from spurcor.analysis.selective import Selective, Stored
from spurcor.data.groups import DataInfo, GroupedDataset, GroupSpec
from spurcor.data.photographs import Photographs
from spurcor.data.streams import Stream
from spurcor.data.transforms import Photo
from spurcor.errors import UserError
from spurcor.methods.erm import Erm
from spurcor.models.backbone import Backbone
from spurcor.models.weights import load_state, load_weights
from spurcor.runs import build, execute
from spurcor.saliency import attention, masking
from spurcor.saliency.attention import attenuated
from spurcor.saliency.maps import grad_cam, heat_maps, layer_cam, xgrad_cam
from spurcor.saliency.masks import MaskedImages, Masks, holes, masked, masked_view, outliers
from spurcor.system.files import read_json
from spurcor.system.terminal import Terminal
from spurcor.training.metrics import apply

TWO = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
SMALL = ("method=masktune", "dataset.subset_size=64", "train.batch_size=16", "method.epochs=2")


# --- maps -----------------------------------------------------------------------------------------


def scaled(rows):
    flat = [v for row in rows for v in row]
    top = max(flat) - min(flat)
    return [[(v - min(flat)) / (1e-7 + top) for v in row] for row in rows]


class TwoLayers(Backbone):
    """A map of two channels, and the mean square of each: G = 2 A / (h w)."""

    layers = ("map", "out")

    def __init__(self):
        super().__init__()
        self.kinds, self.dims = {"map": "map", "out": "vector"}, {"map": 2, "out": 2}
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.first.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)

    def activations(self, x, layers):
        z = self.first(x).relu()
        return {name: {"map": z, "out": z.square().mean((2, 3))}[name] for name in layers}


def test_xgrad_cam_of_a_network_of_two_layers_by_hand():
    info = DataInfo(TWO, (1, 2, 2), torch.ones(4))
    method = Erm(TwoLayers(), info, epochs=1).eval()
    method.head.weight.data = torch.tensor([[1.0, 0.0], [0.5, 3.0]])
    method.head.bias.data.zero_()
    image = [[1.0, -1.0], [0.5, -0.25]]
    A = [[[max(w * v, 0) for v in row] for row in image] for w in (1.0, -2.0)]  # noqa: N806
    squares = [sum(v * v for row in channel for v in row) / 4 for channel in A]
    scores = [squares[0], 0.5 * squares[0] + 3 * squares[1]]
    weights = [[1.0, 0.0], [0.5, 3.0]][scores.index(max(scores))]
    alphas = []
    for w, channel in zip(weights, A, strict=True):
        flat = [v for row in channel for v in row]
        alphas.append(sum(w * v / 2 * v for v in flat) / (sum(flat) + 1e-7))
    pairs = list(zip(alphas, A, strict=True))
    heat = [[max(sum(a * c[i][j] for a, c in pairs), 0) for j in (0, 1)] for i in (0, 1)]
    found = heat_maps(method, torch.tensor([[image]]), "map")
    assert found.shape == (1, 2, 2)
    expected = [value for row in scaled(scaled(heat)) for value in row]
    assert found[0].flatten().tolist() == pytest.approx(expected)
    assert all(weight.grad is None for weight in method.parameters())


def test_each_map_by_loops():
    torch.manual_seed(0)
    A, G = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)  # noqa: N806
    for b in range(2):
        a, g = A[b].double().tolist(), G[b].double().tolist()
        at = [(k, i, j) for k in range(3) for i in range(4) for j in range(5)]
        x_alpha, g_alpha, total = [0.0] * 3, [0.0] * 3, [0.0] * 3
        for k, i, j in at:
            total[k] += a[k][i][j]
        for k, i, j in at:
            x_alpha[k] += g[k][i][j] * a[k][i][j] / (total[k] + 1e-7)
            g_alpha[k] += g[k][i][j] / 20
        for i in range(4):
            for j in range(5):
                x = sum(x_alpha[k] * a[k][i][j] for k in range(3))
                plain = sum(g_alpha[k] * a[k][i][j] for k in range(3))
                layer = sum(max(g[k][i][j], 0) * a[k][i][j] for k in range(3))
                for function, value in ((xgrad_cam, x), (grad_cam, plain), (layer_cam, layer)):
                    found = float(function(A, G)[b, i, j])
                    assert found == pytest.approx(max(value, 0), rel=1e-4, abs=1e-5)


def test_the_heat_of_an_image_does_not_depend_on_its_batch():
    splits, method = build.build(read(*SMALL))
    method.eval()
    x = splits.transform(splits["train"].fetch(torch.arange(6)).x)
    together = heat_maps(method, x, "block2")
    alone = torch.cat([heat_maps(method, one[None], "block2") for one in x])
    assert torch.allclose(together, alone, atol=1e-5)
    assert float(together.amin()) >= 0
    assert float(together.amax()) <= 1


def test_a_vision_transformer_shows_its_patches():
    cfg = read("dataset=waterbirds", "backbone=dinov2_vits14", "backbone.pretrained=none")
    backbone = cfg.backbone.build(info=DataInfo(TWO, (3, 28, 56), torch.ones(4))).eval()
    method = Erm(backbone, DataInfo(TWO, (3, 28, 56), torch.ones(4)), epochs=1).eval()
    layer = backbone.spatial()
    assert layer == "block_10"  # of the last one, only the class token goes on
    x = torch.randn(2, 3, 28, 56)
    tokens, features = backbone.through(x, layer)
    assert torch.equal(features, backbone(x))
    grid = backbone.maps(layer, tokens, 28, 56)
    assert grid.shape == (2, 384, 2, 4)
    assert torch.equal(grid[1, :, 1, 2], tokens[1, 1 + 4 + 2])
    gradients = torch.autograd.grad(method.head(features).sum(), tokens)[0]
    assert gradients[:, 1:].abs().max() > 0
    heat = heat_maps(method, x, layer, "layer_cam")
    assert heat.shape == (2, 28, 56)
    with pytest.raises(UserError, match=r"layer=block_11 .* block_10"):
        backbone.spatial("block_11")


# --- masks ----------------------------------------------------------------------------------------


def test_one_outlier_masks_exactly_that_pixel():
    heat = torch.full((3, 8, 8), 0.1)
    heat[0, 2, 5] = 1.0
    heat[1] = 0.0  # nothing is positive: nothing is masked
    heat[2, :, 0] = 0.0
    heat[2, 7, 7] = 0.9
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    expected[0, 2, 5] = expected[2, 7, 7] = True
    assert torch.equal(outliers(heat, 2.0), expected)


def test_the_threshold_by_loops():
    torch.manual_seed(0)
    heat = (torch.randn(300, 6, 7) - 0.3).relu()  # many, so that some are near the threshold
    for deviations in (0.5, 1.0, 2.0):
        found = outliers(heat, deviations)
        for image, of in zip(heat, found, strict=True):
            positive = [v for v in image.flatten().tolist() if v > 0]
            mean = sum(positive) / len(positive)
            std = math.sqrt(sum((v - mean) ** 2 for v in positive) / len(positive))
            assert torch.equal(of, image > mean + deviations * std)
        assert found.any()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (3, 3)])
def test_masks_are_bits_by_index(height, width, tmp_path):
    torch.manual_seed(0)
    whole = torch.rand(20, height, width) > 0.5
    masks = Masks.empty(20, height, width)
    order = torch.randperm(20)
    for indices in order.split(6):
        masks.put(indices, whole[indices])
    assert masks.packed.nbytes == 20 * math.ceil(height * width / 8)
    assert torch.equal(masks.take(torch.arange(20)), whole)
    masks.save(tmp_path / "masks" / "a.npy")
    loaded = Masks.load(tmp_path / "masks" / "a.npy", height, width)
    assert torch.equal(loaded.take(order), whole[order])
    loaded.add(Masks.empty(20, height, width))
    assert torch.equal(loaded.take(order), whole[order])


def test_holes_have_the_area_asked_for_in_one_piece_anywhere():
    area = torch.tensor([0, 1, 2, 3, 10, 16, 17, 48] * 50)
    found = holes(area, 6, 8, torch.Generator().manual_seed(0))
    assert torch.equal(found.sum((1, 2)), area)
    for mask in found[area == 10]:
        i, j = mask.nonzero().unbind(1)
        assert (i.max() - i.min(), j.max() - j.min()) == (2, 3)
    places = {tuple(mask.nonzero()[0].tolist()) for mask in found[area == 1]}
    assert len(places) > 20


def photograph(path, size, square):
    """A grey photograph (width, height) with a green square (left, top, right, bottom)."""
    image = Image.new("RGB", size, (90, 90, 90))
    image.paste((0, 255, 0), square)
    image.save(path)


def is_green(x):
    """(B, H, W) bool of images with values 0 to 255."""
    return (x[:, 1].float() - x[:, 0].float()) > 80


@pytest.mark.parametrize(
    "transform",
    [
        Photo(size=112, resize=128, crop=112, augment=True, short=128),
        Photo(size=112, resize=None, crop=89, augment=True, short=128),
        Photo(size=112, resize_short=128, crop=112, augment=True, short=100),
        Photo(size=112, resize=112, crop=None, augment=True, short=128),
        Photo(size=112, resize=128, crop=112, augment=False),
    ],
    ids=["resized-cropped", "cropped", "shorter-cropped", "squashed", "as-evaluated"],
)
def test_masks_line_up_with_a_planted_square(transform, tmp_path):
    squares = [(40, 30, 60, 50), (25, 60, 45, 80), (45, 45, 60, 60)]
    for i, square in enumerate(squares):
        photograph(tmp_path / f"{i}.png", (89, 109), square)
    names = [f"{i}.png" for i in range(3)]
    zeros = torch.zeros(3, dtype=torch.int64)
    photos = Photographs(TWO, tmp_path, names, zeros, zeros, {"train": torch.arange(3)})
    split = photos.open({"train": torch.tensor([2, 0, 1])}, transform)["train"]
    x = split.fetch(torch.arange(3)).x
    seen = transform(x) * torch.tensor(transform.normalize.std).view(3, 1, 1)
    seen = 255 * (seen + torch.tensor(transform.normalize.mean).view(3, 1, 1))
    found = is_green(seen)
    masks = Masks.empty(3, 112, 112)
    masks.put(torch.arange(3), found)
    hidden = masked(split, masks, transform)
    for i in range(3):
        stored = split.train_images.view(int(split.train_rows[i]))
        green, black = is_green(stored[None])[0], (hidden.images.view(i) == 0).all(0)
        assert int(green.sum()) > 100
        both = int((green & black).sum())
        assert both > 0.93 * int(green.sum())  # but for the blurred border
        assert both > 0.93 * int(black.sum())
    for batch, _ in zip(Stream(hidden, transform, 3, seed=0).start(0), range(4), strict=False):
        crops = batch.x * torch.tensor(transform.normalize.std).view(3, 1, 1)
        crops = 255 * (crops + torch.tensor(transform.normalize.mean).view(3, 1, 1))
        assert int(is_green(crops).sum()) < 0.02 * crops[:, 0].numel()


def test_where_the_crop_of_a_reduced_photograph_lies_is_not_guessed():
    transform = Photo(resize=None, crop=178, augment=True, short=256)
    sizes = torch.tensor([[218, 178], [256, 300]])
    assert transform.window(sizes[:1]).tolist() == [[20, 0, 178, 178]]
    with pytest.raises(UserError, match=r"dataset.transform.resize"):
        transform.window(sizes)


def test_only_what_lies_on_stored_images_asks_where_their_crops_lie(tmp_path):
    unknown = Photo(resize=None, crop=8, augment=True, short=8)
    for mask, needs in (("saliency", True), ("random", True), ("none", False)):
        cfg = read(*SMALL, f"method.mask={mask}")
        splits, method = build.build(cfg)
        splits = dataclasses.replace(splits, transform=unknown)
        context = build.context_of(cfg, splits, tmp_path)
        refusal = pytest.raises(UserError) if needs else contextlib.nullcontext()
        with refusal:
            method.phases()[1].check(context)


def test_masked_images_in_memory_and_as_they_are_evaluated():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (9, 3, 5, 7), dtype=torch.uint8)
    y = torch.zeros(9, dtype=torch.int64)
    rows = torch.tensor([8, 3, 3, 0])
    split = GroupedDataset(TWO, images, y, y, torch.arange(9)).subset(rows)
    mask = torch.rand(4, 5, 7) > 0.5
    masks = Masks.empty(4, 5, 7)
    masks.put(torch.arange(4), mask)
    for hidden in (masked_view(split, masks), masked(split, masks, Photo(resize=8))):
        assert isinstance(hidden.images, MaskedImages)
        assert len(hidden.images) == len(hidden) == 4
        expected = images[rows] * ~mask[:, None]
        order = torch.tensor([2, 0])
        assert torch.equal(hidden.fetch(order).x, expected[order])
        assert torch.equal(hidden.images.view(3), expected[3])
        assert torch.equal(hidden.images.to(torch.device("cpu")).take(order), expected[order])
    assert torch.equal(split.fetch(torch.arange(4)).x, images[rows])


# --- phases ---------------------------------------------------------------------------------------


def fitted(folder, *overrides):
    """A run of the digits, with every batch that was trained on."""
    folder.mkdir(exist_ok=True)
    trainer, method = trainer_of(read(*SMALL, *overrides), folder)
    phases, batches = method.phases(), {}

    def watched(phase, step):
        def take(given):
            batches.setdefault(phase.name, []).append(given["train"])
            return step(given)

        return take

    for phase in phases:
        phase.step = watched(phase, phase.step)
    method.phases = lambda: phases
    trainer.fit(method)
    return trainer, method, phases, batches


def test_fine_tuning_sees_each_train_image_once_and_masked(tmp_path):
    trainer, method, _, batches = fitted(tmp_path)
    assert list(batches) == ["erm", "finetune"]
    indices = torch.cat([batch.index for batch in batches["finetune"]])
    assert sorted(indices.tolist()) == list(range(64))
    assert trainer.progress.images_seen == 3 * 64
    splits = trainer.context.splits
    load_weights(
        method, tmp_path / "phases" / "erm" / "model.safetensors"
    )  # the best, not the last
    method.eval()
    split = splits["train"]
    found = outliers(heat_maps(method, splits.transform(split.fetch(indices).x), "block2"), 2.0)
    assert found.any()
    expected = splits.transform(split.fetch(indices).x * ~found[:, None])
    assert torch.equal(torch.cat([batch.x for batch in batches["finetune"]]), expected)
    order = torch.cat([batch.index for batch in batches["erm"][:4]])
    assert not torch.equal(order, indices)  # a permutation of its own


def test_it_starts_where_erm_ended_and_masks_are_of_the_best_weights(tmp_path):
    """One step of fine-tuning at rate 0 leaves the weights of ERM's end, not of its best epoch."""
    options = ("method.epochs=4", "method.finetune_lr=0", "optimizer.lr=0.02")
    _, method, _, _ = fitted(tmp_path, *options)
    rows = rows_of(tmp_path)
    before = json.loads((tmp_path / "phases" / "erm" / "result.json").read_text())
    averages = [row["val/average"] for row in rows if row["phase"] == "erm"]
    best = averages.index(max(averages)) + 1
    assert before["selected"] == {"criterion": "val/average", "phase": "erm", "epoch": best}
    assert before["weights"] == "last"
    assert before["test"]["average"] == pytest.approx(rows[3]["test/average"])
    assert set(before["test"]["classes"]) == {"small", "large"}
    _, other = trainer_of(read(*SMALL, *options), tmp_path)
    load_weights(other, tmp_path / "phases" / "erm" / "last.safetensors")
    for (name, ended), began in zip(method.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ended, began), name
    logits = np.load(tmp_path / "phases" / "erm" / "predictions.npz")["test/logits"]
    splits, _ = build.build(read(*SMALL))
    found = apply(other.eval().predict, splits["test"], splits.transform)
    assert torch.allclose(torch.from_numpy(logits), found, atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_the_rate_is_the_one_of_erms_last_epoch_and_momentum_goes_on(schedule, tmp_path):
    options = ["method.epochs=3", "optimizer=sgd", "optimizer.lr=0.01", f"schedule={schedule}"]
    options += ["schedule.step_size=1"] if schedule == "step" else []
    _, _, (erm, finetune), _ = fitted(tmp_path, *options)
    last = {"constant": 0.01, "step": 0.0025, "cosine": 0.01 * (1 + math.cos(2 * math.pi / 3)) / 2}
    for phase, rate in ((erm, "last_lr"), (finetune, "lr")):
        (group,) = phase.optimizer.param_groups
        assert group[rate] == pytest.approx(last[schedule])
    kept = torch.load(tmp_path / "phases" / "erm" / "state.pt", weights_only=True)
    trainer, method = trainer_of(read(*SMALL, *options), tmp_path)
    _, again = method.phases()
    again.setup(trainer.context)
    method.eval()
    with torch.no_grad():
        again.begin(trainer.context)
    state = again.optimizer.state_dict()["state"]
    assert state
    for key, value in kept["optimizer"]["state"].items():
        assert torch.equal(state[key]["momentum_buffer"], value["momentum_buffer"])


@pytest.mark.parametrize("which", ["erm", "finetune"])
def test_what_the_first_release_kept_of_a_phase_is_gone_on_with(which, tmp_path):
    """There the rates of a kept optimiser were those of its last epoch."""
    options = ["method.epochs=3", "optimizer=sgd", "optimizer.lr=0.01", "schedule=cosine"]
    options += ["method.iterations=2"]
    fitted(tmp_path, *options)
    path = tmp_path / "phases" / which / "state.pt"
    kept = torch.load(path, weights_only=True)
    (group,) = kept["optimizer"]["param_groups"]
    last = group.pop("last_lr", group["lr"])
    group["lr"] = last
    torch.save(kept | {"ended": True}, path)
    trainer, method = trainer_of(read(*SMALL, *options), tmp_path)
    after = {"erm": 1, "finetune": 2}[which]
    phase = method.phases()[after]
    phase.setup(trainer.context)
    method.eval()
    with torch.no_grad():
        phase.begin(trainer.context)
    (group,) = phase.optimizer.param_groups
    assert group["lr"] == last == pytest.approx(0.01 * (1 + math.cos(2 * math.pi / 3)) / 2)
    phase.load_state_dict(phase.state_dict() | {"ended": True})  # stopped at its end
    (group,) = phase.optimizer.param_groups
    assert group["lr"] == last


def test_a_phase_that_stops_early_leaves_the_rate_of_its_last_epoch(tmp_path):
    options = ["method.epochs=6", "optimizer=sgd", "optimizer.lr=1e-30", "schedule=step"]
    options += ["schedule.step_size=1", "train.early_stopping={patience: 1}"]
    _, _, (_, finetune), _ = fitted(tmp_path, *options)
    epoch = max(row["epoch"] for row in rows_of(tmp_path) if row["phase"] == "erm")
    assert 1 < epoch < 6  # at such a rate the weights stand still
    (group,) = finetune.optimizer.param_groups
    assert group["lr"] == pytest.approx(1e-30 * 0.5 ** (epoch - 1), rel=1e-6, abs=0)


def test_random_masks_have_the_area_of_the_saliency_masks(tmp_path):
    areas = {}
    for mask in ("saliency", "random"):
        fitted(tmp_path / mask, f"method.mask={mask}")
        masks = Masks.load(tmp_path / mask / "masks" / "finetune.npy", 8, 8)
        areas[mask] = masks.take(torch.arange(64))
    assert torch.equal(areas["saliency"].sum((1, 2)), areas["random"].sum((1, 2)))
    assert not torch.equal(areas["saliency"], areas["random"])


def test_without_a_mask_fine_tuning_is_one_more_epoch(tmp_path):
    trainer, _, _, batches = fitted(tmp_path, "method.mask=none")
    splits = trainer.context.splits
    for batch in batches["finetune"]:
        assert torch.equal(batch.x, splits.transform(splits["train"].fetch(batch.index).x))
    assert not (tmp_path / "masks").exists()


def test_iterations_mask_anew_and_accumulate(tmp_path):
    found = {}
    for accumulative in ("false", "true"):
        folder = tmp_path / accumulative
        options = ("method.iterations=3", f"method.accumulative={accumulative}")
        _, _, _, batches = fitted(folder, *options)
        names = ["finetune", "finetune2", "finetune3"]
        assert list(batches) == ["erm", *names]
        assert {path.stem for path in (folder / "plots").iterdir()} == {
            "masks",
            "masks2",
            "masks3",
        }
        found[accumulative] = [
            Masks.load(folder / "masks" / f"{name}.npy", 8, 8).take(torch.arange(64))
            for name in names
        ]
    plain, grown = found["false"], found["true"]
    assert torch.equal(plain[0], grown[0])
    assert not torch.equal(plain[0], plain[1])
    for before, after in itertools.pairwise(grown):
        assert bool((after | ~before).all())
        assert int(after.sum()) > int(before.sum())


# --- attention ------------------------------------------------------------------------------------


def test_attention_by_loops(monkeypatch):
    cfg = read(*SMALL, "method.mask=attention", "method.layer=block2", "method.quantile=0.6")
    splits, method = build.build(cfg)
    method.train()
    x = splits.transform(splits["train"].fetch(torch.arange(3)).x)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    found = attenuated(method.backbone, "block2", x, 0.6)
    monkeypatch.setattr(attention, "ENLARGED", 1)  # channel by channel
    assert torch.equal(method.masking.faded(method.backbone, x), found)
    assert method.training
    for name, value in before.items():
        assert torch.equal(value, method.state_dict()[name]), name
    method.eval()
    with torch.no_grad():
        A = method.backbone.activations(x, ["block2"])["block2"]  # noqa: N806
    A = (A - A.min()) / (A.max() - A.min())  # noqa: N806
    threshold = np.quantile(A.double().numpy(), 0.6, method="nearest")
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)(A).double().numpy()
    for b in range(3):
        for i, j in ((0, 0), (3, 5), (7, 2), (4, 4)):
            share = sum(up[b, k, i, j] > threshold for k in range(32)) / 32
            expected = x[b, :, i, j] * (1 - 0.5 * share)
            assert found[b, :, i, j].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert not torch.equal(found, x)


def test_attention_masks_train_on_vgg(tmp_path):
    options = ("backbone=vgg_attention", "method.mask=attention", "dataset.num_val=16")
    _, method, _, batches = fitted(tmp_path, *options, "dataset.num_test=16")
    assert method.masking.layer == "attention"
    assert not (tmp_path / "masks").exists()
    assert len(batches["finetune"]) == 4
    assert [row["phase"] for row in rows_of(tmp_path)] == ["erm", "erm", "finetune"]


# --- from a finished run --------------------------------------------------------------------------


def finished(outputs, *overrides):
    cfg = read(*SMALL, "tracker=none", "dfr=none", f"paths.outputs={outputs}", *overrides)
    assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    return cfg


def test_a_finished_run_takes_the_place_of_erm(tmp_path):
    """Masks are of its selected weights, training goes on from its last ones."""
    erm = finished(tmp_path, "method=erm", "method.epochs=4", "optimizer.lr=0.02")
    options = (f"method.init={erm.identity}", "method.finetune_lr=0")
    tuned = finished(tmp_path, *options)
    assert {row["phase"] for row in rows_of(tuned.directory)} == {"finetune"}
    weights = [load_state(cfg.directory / "last.safetensors") for cfg in (erm, tuned)]
    for name, _ in build.build(erm)[1].named_parameters():
        assert torch.equal(weights[0][name], weights[1][name]), name
    splits, method = build.build(erm)
    load_weights(method.eval(), erm.directory / "model.safetensors")
    x = splits.transform(splits["train"].fetch(torch.arange(64)).x)
    masks = Masks.load(tuned.directory / "masks" / "finetune.npy", 8, 8)
    expected = outliers(heat_maps(method, x, "block2"), 2.0)
    assert (masks.take(torch.arange(64)) != expected).float().mean() < 0.001  # other batch sizes
    assert expected.any()


def test_the_gate_of_resnet50_attention_starts_anew_on_a_trained_resnet(tmp_path, small_root):
    """Two networks on several labels, as published, with their selective answers."""
    common = ("dataset=celeba_attributes", f"paths.data={small_root}", "backbone.pretrained=none")
    small = ("dataset.subset_size=8", "train.batch_size=4", "dataset.transform.size=64")
    options = (*common, *small, f"paths.outputs={tmp_path}", "tracker=none")
    before = read("method=erm", *options, "backbone=resnet50", "method.epochs=1")
    assert execute.execute(before, Terminal(quiet=True)).status == "done"
    init = f"method.init={before.identity}"
    cfg = read("method=masktune", *options, init, "analysis=selective")
    assert cfg.choices["backbone"] == "resnet50_attention"
    splits, method = build.build(cfg)
    own = {name: value.clone() for name, value in method.state_dict().items()}
    build.start_from(cfg.init, splits, method)
    trained = load_state(before.directory / "last.safetensors")
    for name, value in method.state_dict().items():
        source = own if name.startswith(("backbone.attention.", "head.")) else trained
        assert torch.equal(value, source[name]), name
    x = splits.transform(splits["val"].fetch(torch.arange(2)).x)
    maps = method.eval().backbone.activations(x, ["layer4", "attention", "pool"])
    gate = method.backbone.attention.mask
    mask = 1 / (1 + (-gate(maps["layer4"]).double()).exp())
    assert torch.allclose(maps["attention"].double(), maps["layer4"].double() * mask, atol=1e-5)
    assert torch.allclose(maps["pool"], maps["attention"].mean((2, 3)), atol=1e-5)
    outcome = execute.execute(cfg, Terminal(quiet=True))
    assert outcome.status == "done"
    after = load_state(cfg.directory / "last.safetensors")
    for name in ("backbone.attention.mask.weight", "backbone.attention.mask.bias", "head.weight"):
        assert not torch.equal(after[name], own[name]), name
    assert set(outcome.result["test"]["labels"]["Bald"]) == {"precision", "recall", "f1"}
    # The first network is the one that was trained, not the one whose gate and head are new.
    networks = _networks([before.directory, cfg.directory])
    report = Selective().compare(networks, tmp_path)["rules"]["agreement"]
    (part,) = outcome.result["analysis"].values()
    assert part["rules"] == {"agreement": report}
    erm = read_json(before.directory / "result.json")["test"]
    assert outcome.result["phases"]["erm"]["test"]["labels"] == erm["labels"]


def _networks(directories):
    spec = GroupSpec(
        tuple(read_json(directories[0] / "result.json")["test"]["classes"]), (), task="multilabel"
    )
    return [Stored.load(path.parent.parent.name, spec, path) for path in directories]


# --- resume and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2])
def test_a_run_killed_while_it_makes_masks_ends_the_same(at, tmp_path, monkeypatch):
    options = (*SMALL, "method.iterations=2", "method.mask=random", "train.checkpoint_seconds=0")
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    trainer, straight = trainer_of(read(*options), folders["whole"])
    trainer.fit(straight)
    calls = 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls in (at + 1, at + 8):  # in the first masks, then in the second
            raise KeyboardInterrupt
        return heat_maps(*arguments)

    monkeypatch.setattr(masking, "heat_maps", dying)
    for _ in range(2):
        broken, method = trainer_of(read(*options), folders["killed"])
        with pytest.raises(KeyboardInterrupt):
            broken.fit(method)
    again, resumed = trainer_of(read(*options), folders["killed"])
    torch.manual_seed(12345)
    again.fit(resumed)
    kept = [without_time(rows_of(folder)) for folder in folders.values()]
    assert kept[0] == kept[1]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name in ("finetune", "finetune2"):
        contents = [(folder / "masks" / f"{name}.npy").read_bytes() for folder in folders.values()]
        assert contents[0] == contents[1]


@pytest.mark.parametrize("step", [20, 24])
def test_the_best_weights_survive_a_crash_in_the_phase(step, tmp_path):
    """They may be of an epoch before the crash, and only on the disk."""
    options = (*SMALL, "method.epochs=6", "optimizer.lr=0.05", "train.checkpoint_seconds=0")
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    whole.mkdir()
    crashed.mkdir()
    trainer, method = trainer_of(read(*options), whole)
    trainer.fit(method)
    broken, method = trainer_of(read(*options), crashed)
    broken.observer = StopAt(step)
    with pytest.raises(CrashError):
        broken.fit(method)
    again, method = trainer_of(read(*options), crashed)
    again.fit(method)
    for name in ("model.safetensors", "last.safetensors"):
        kept = Path("phases") / "erm" / name
        assert (whole / kept).read_bytes() == (crashed / kept).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("backbone=mlp",), "backbone=mlp: .*layer_1"),
        (("method.layer=hidden",), "layer=hidden .* block1, block2"),
        (("method.layer=block9",), "layer=block9 does not exist"),
        (("method.iterations=0",), "iterations=0 must be at least 1"),
        (("method.quantile=1",), "quantile=1.0 must be between 0 and 1"),
        (("method.deviations=-1",), "deviations=-1.0 must be at least 0"),
        (("method.deviations=nan",), "deviations=nan"),
        (("method.finetune_lr=-1",), "finetune_lr=-1.0 must be at least 0"),
        (("method.epochs=0",), "epochs=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build.build(read(*SMALL, *options))
