"""Kill real commands at random moments, issue them anew until they are done, compare the result.

python -m scripts.battery.kills [--seconds 600] [--seed 0] [--kills 300] [--only train,report]

Every method, repairs, analyses, stores of photographs, features, archives, reports and sweeps: each
command runs once in peace, then again and again in the same place under SIGKILL, SIGTERM, SIGINT
and SIGUSR1. In the end rows (but for clocks), weights, predictions, results, pictures, tables and
the list of files must be the same, no lock and no half-written file may stay behind, a second issue
must change nothing, and nobody may have seen a traceback.
"""

import random
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conftest import CommandLine
from generators_photos import NAMES, csv, jpeg, make_rows, put, put_tar, waterbirds
from killing import Battle, Command
from training import smallest

from scripts.battery.runner import Tally, parser
from spurcor.config import packages

SIGNALS = (
    *(signal.SIGKILL,) * 5, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1,
)  # fmt: skip
OUTPUTS = ("paths.outputs={place}/outputs",)
DATA = (*OUTPUTS, "paths.data={place}/data")
# Checkpoints all the time, so that kills fall inside their writing too.
TRAIN = (*DATA, "tracker=none", "train.num_threads=1", "train.checkpoint_seconds=0.05")
SMALL = ("backbone=mlp", "backbone.width=16")
EPOCHS = {"masktune": 6, "prusc": 20, "erm_target": 20}
FEW = ("dataset.subset_size=300",)
MEASURED = "analysis=[gradient_basis,gap_dynamics,jacobian_norm,output_moments,selective]"
LONG = 300.0  # seconds from which on slow scenes are played
SHOWN = 5  # differences that are told of one command
PHOTOS = {0: (40, 20, 20, 30), 1: (6, 6, 6, 6), 2: (6, 6, 6, 6)}  # per split and group


@dataclass(frozen=True)
class Scene:
    """What is killed, what is there before, and what data lie about."""

    name: str
    command: Command
    before: tuple[Command, ...] = ()
    data: str = ""  # "photos" or "archive"
    slow: bool = False  # left out where there are less than five minutes


def train(*words: str, again: bool = True, processes: bool = False) -> Command:
    """A training command."""
    return Command("train", (*words, *TRAIN), again, processes)


def of_method(method: str, *typed: str) -> Command:
    """A short run of a method, with options of one's own."""
    epochs = () if method == "frozen" else (f"method.epochs={EPOCHS.get(method, 12)}",)
    few = () if method == "prusc" else FEW  # which wants classes mixed in its clusters
    repair = () if method in ("erm", "frozen") else ("dfr=none",)  # has scenes of its own
    return train(f"method={method}", *epochs, *smallest(method), *few, *repair, *typed)


def scenes() -> Iterator[Scene]:
    """All there are."""
    for name in packages.options("method"):
        yield Scene(f"train-{name}", of_method(name))
    short = (*SMALL, *FEW, "method.epochs=5")
    erm = train(*short, "dfr=none", "train.keep_epochs=[2]")
    on_run = ("run=r", *DATA)
    yield Scene("train-analyses", train(*short, MEASURED, "train.keep_epochs=[2]"))
    stopping = ("train.early_stopping={patience: 3, metric: val/loss}", "schedule=cosine")
    yield Scene("train-stopping", train(*SMALL, *FEW, "method.epochs=12", *stopping))
    prusc = (*smallest("prusc"), "method=prusc", "method.init={run}")
    origin = train(*SMALL, "dataset.strength=0.7", "method.epochs=5", "dfr=none")
    yield Scene("train-init", train(*prusc), (origin,))
    features = ("features=frozen", "features/backbone=mlp", "features.backbone.width=16")
    yield Scene("features", train(*features, *FEW, "method.epochs=3"))
    for dfr in ("val", "sgd", "gradient_flow"):
        repair = Command("retrain", (*on_run, f"dfr={dfr}", "tracker=none"))
        yield Scene(f"retrain-{dfr}", repair, (erm,))
    repairs = Command("retrain", ("-m", *on_run, "dfr=val,target,train", "tracker=none"))
    yield Scene("retrain-several", repairs, (erm,))
    yield Scene("analyze", Command("analyze", (*on_run, MEASURED, "tracker=none")), (erm,))
    yield Scene("clusters", Command("clusters", (*on_run, "num_clusters=3"), again=False), (erm,))
    prepare = ("dataset=folder", *DATA)
    yield Scene("store", Command("prepare", prepare, again=False), data="photos")
    small = ("dataset.transform.resize=36", "dataset.transform.crop=32")
    resnet = ("backbone=resnet18", "backbone.pretrained=none", "method.epochs=1", "dfr=none")
    photos = train("dataset=folder", *small, *resnet)
    yield Scene("train-photos", photos, data="photos", slow=True)
    birds = ("dataset=waterbirds", *DATA)
    yield Scene("archive", Command("prepare", birds, again=False), data="archive")
    sweep = ("-m", "method=erm,iw", "seed=0,1", *short)
    yield Scene("sweep", train(*sweep))
    report = Command("report", ("sweep=default", *OUTPUTS, "tracker=none"), again=False)
    yield Scene("report", report, (train(*sweep),))
    pool = ("hydra/launcher=local_pool", "hydra.launcher.n_jobs=2")
    parallel = train("-m", "method=erm,iw", *short, *pool, processes=True)
    yield Scene("pool", parallel, slow=True)


def typed_scene(words: Sequence[str]) -> Scene:
    """The scene of one method, which may be of one's own."""
    first, *rest = words
    key, _, name = first.partition("=")
    if key != "method" or not name:
        raise SystemExit(f"{first}: say method=<name> first, then options such as method.epochs=3")
    return Scene(shlex.join(words), of_method(name, *rest))


def put_data(kind: str, folder: Path) -> None:
    """Photographs with a table, or Waterbirds as an archive."""
    rows = make_rows(PHOTOS)
    if kind == "photos":
        lines = [(f"{row.index}.jpg", NAMES[row.split], row.y, row.a) for row in rows]
        images = {f"{row.index}.jpg": jpeg(row.index, (60 + row.index % 9, 54)) for row in rows}
        put(folder / "folder", {"metadata.csv": csv("filename,split,y,a", lines), **images})
    if kind == "archive":
        put_tar(folder / "waterbirds_v1.0.tar.gz", waterbirds(rows))


def main() -> int:
    """Returns 1 if anything tells."""
    described = parser(__doc__)
    described.add_argument("--kills", type=int, default=10**9, help="stop after this many kills")
    described.add_argument(
        "--rounds", type=int, default=10**9, help="stop after this many rounds over all scenes"
    )
    described.add_argument(
        "--cold",
        type=int,
        default=10,
        help="percentage of commands run in a newly started Python process",
    )
    described.add_argument("--only", default="", help="only scenes whose names begin so")
    described.add_argument(
        "words", nargs="*", help="method=<name> and its options: test only this method"
    )
    options = described.parse_intermixed_args()
    chosen = [typed_scene(options.words)] if options.words else list(scenes())
    chosen = [scene for scene in chosen if scene.name.startswith(tuple(options.only.split(",")))]
    if not chosen:
        described.error(f"--only {options.only} begins the name of no scene")
    if options.seconds < LONG and not options.only:
        chosen = [scene for scene in chosen if not scene.slow]
    random.Random(options.seed).shuffle(chosen)
    chosen.sort(key=lambda scene: scene.slow)
    tally = Tally("kills", options.seconds)
    with tempfile.TemporaryDirectory(prefix="battery-") as folder:
        line = CommandLine(Path(folder))
        battles: dict[str, Battle] = {}
        for seed in range(options.seed, options.seed + options.rounds):
            for scene in chosen:
                if not tally.time_left or tally.counts["kills"] >= options.kills:
                    break
                try:
                    if scene.name not in battles:
                        battles[scene.name] = ready(line, Path(folder), scene, options.cold)
                    fight(tally, scene, battles[scene.name], seed)
                except (AssertionError, TimeoutError) as error:
                    tally.find(f"{scene.name}: {error}", again(scene, seed))
                    if scene.name not in battles:  # nor would it be left in peace next time
                        chosen = [one for one in chosen if one is not scene]
            if not chosen or not tally.time_left or tally.counts["kills"] >= options.kills:
                break
        line.close()
    return tally.end()


def ready(line: CommandLine, folder: Path, scene: Scene, cold: int) -> Battle:
    """A scene with what it leaves in peace."""
    place = folder / re.sub(r"\W+", "-", scene.name)
    (place / "place" / "data").mkdir(parents=True)
    put_data(scene.data, place / "place" / "data")
    battle = Battle(line, place, scene.command, scene.before, cold_percent=cold, signals=SIGNALS)
    battle.make_peace()
    return battle


def again(scene: Scene, seed: int) -> str:
    """The command that plays a scene as it was played."""
    chosen = scene.name if "=" in scene.name else f"--only {scene.name}"
    return f"python -m scripts.battery.kills {chosen} --rounds 1 --seed {seed}"


def fight(tally: Tally, scene: Scene, battle: Battle, seed: int) -> None:
    """Some kills of one command, until it is done."""
    rng = random.Random(f"{seed} {scene.name}")
    battle.moments.clear()
    battle.findings.clear()
    kills = battle.fight(rng, rng.randint(2, 10), going_on=lambda: tally.time_left)
    tally.count("kills", kills)
    tally.count("commands brought to their end")
    told = ", ".join(f"{n} x {moment}" for moment, n in battle.moments.most_common())
    if battle.findings:
        more = f"; and {len(battle.findings) - SHOWN} more" if len(battle.findings) > SHOWN else ""
        found = "; ".join(battle.findings[:SHOWN])
        tally.find(f"{scene.name} ({told}): {found}{more}", again(scene, seed))


if __name__ == "__main__":
    sys.exit(main())
