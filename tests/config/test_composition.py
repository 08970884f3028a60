"""Nothing foreign runs because of a configuration: every way leaves a canary, and none may."""

import pytest

CANARY = """
import os
open(os.environ["CANARY"], "w").close()
def evil(*args, **options):
    raise SystemExit(0)
Evil = evil
"""
HUB = "{_target_: torch.hub.load, repo_or_dir: FOLDER, model: evil, source: local}"
# What a sweep file may try, and the key that is told.
SWEEPS = {
    "callback": (f"hydra: {{callbacks: {{a: {HUB}}}}}", "hydra.callbacks"),
    "callback of Hydra's": (
        "hydra: {callbacks: {a: {_target_: hydra.utils.call, config: " + HUB + "}}}",
        "hydra.callbacks",
    ),
    "launcher": ("hydra: {launcher: {_target_: canary_module.Evil}}", "hydra.launcher._target_"),
    "below a launcher": (f"hydra: {{launcher: {{extra: {HUB}}}}}", "hydra.launcher.extra"),
    "by way of the site": (
        "hydra: {launcher: {extra: '${site.additional_parameters}'}}\n"
        f"site: {{additional_parameters: {HUB}}}",
        "hydra.launcher.extra",
    ),
    "partial": ("hydra: {launcher: {_partial_: true}}", "hydra.launcher._partial_"),
    "sweeper": (f"hydra: {{sweeper: {HUB}}}", "hydra.sweeper._target_"),
    "below a sweeper": (f"hydra: {{sweeper: {{points: [{HUB}]}}}}", "hydra.sweeper.points.0"),
    "filter": (
        "hydra: {job_logging: {filters: {a: {'()': canary_module.Evil}}}}",
        "hydra.job_logging.filters.a.()",
    ),
    "handler": (
        "hydra: {hydra_logging: {handlers: {a: {class: canary_module.Evil}}}}",
        "hydra.hydra_logging.handlers.a.class",
    ),
    "formatter": (
        "hydra: {job_logging: {formatters: {a: {class: canary_module.Evil}}}}",
        "hydra.job_logging.formatters.a.class",
    ),
    "stream": (
        "hydra: {hydra_logging: {handlers: {a: {class: logging.StreamHandler,"
        " stream: 'ext://canary_module.Evil'}}}}",
        "hydra.hydra_logging.handlers.a.stream",
    ),
    "environment": ("hydra: {job: {env_set: {PATH: FOLDER}}}", "hydra.job.env_set"),
    "environment copied": ("hydra: {job: {env_copy: [HOME]}}", "hydra.job.env_copy"),
    "search path": ("hydra: {searchpath: ['structured://canary_module']}", "hydra.searchpath"),
    "search path of a point": (
        "hydra: {sweeper: {points: ['hydra.searchpath=[structured://canary_module]']}}",
        "hydra.searchpath",
    ),
    "search path of a parameter": (
        "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://canary_module]'}}}",
        "hydra.searchpath",
    ),
    "logging of a point": (
        "hydra: {sweeper: {points: ['+hydra.callbacks.a._target_=canary_module.Evil']}}",
        "hydra.callbacks",
    ),
    "shell lines": (
        "hydra: {launcher: {setup: [touch FOLDER/canary]}}\ndefaults:\n"
        "  - override /hydra/launcher: slurm",
        "hydra.launcher.setup",
    ),
    "shell lines of the site": ("site: {setup: [touch FOLDER/canary]}", "site.setup"),
    "late": (
        "hydra: {job: {name: canary_module.Evil}, job_logging: {handlers: {a: {class:"
        " '${hydra:job.name}'}}}}",
        "HydraConfig",
    ),
    "interpolated": (
        "sweep: canary_module.Evil\nhydra: {job_logging: {handlers: {a: {class: '${sweep}'}}}}",
        "hydra.job_logging.handlers.a.class",
    ),
}  # fmt: skip
FLAGS = {
    "pickle": (["--experimental-rerun", "FOLDER/config.pickle"], "--experimental-rerun"),
    "path of a package": (["--config-path", "pkg://canary_module"], "--config-path"),
    "search path": (["hydra.searchpath=[pkg://canary_module]"], "hydra.searchpath"),
    "search path and what is shown": (
        ["hydra.searchpath=[structured://canary_module]", "--info", "defaults"],
        "hydra.searchpath",
    ),
    "search path of a main file": (
        ["--config-dir", "FOLDER/conf", "--config-name", "main"],
        "hydra.searchpath",
    ),
}


@pytest.fixture
def trap(tmp_path):
    """A working directory with code that tells when it is run."""
    for name in ("canary_module", "hubconf"):
        (tmp_path / f"{name}.py").write_text(CANARY)
    (tmp_path / "config.pickle").write_bytes(b"ccanary_module\nEvil\n(tR.")
    (tmp_path / "conf" / "sweeps").mkdir(parents=True)
    main = "hydra: {searchpath: ['structured://canary_module']}\n"
    (tmp_path / "conf" / "main.yaml").write_text(main)
    yield tmp_path
    assert not (tmp_path / "canary").exists(), "foreign code ran"


def refused(command_line, folder, *arguments):
    canary = {"CANARY": str(folder / "canary"), "PYTHONPATH": str(folder)}
    outputs = folder / "outputs"
    ended = command_line.run(
        "train", f"paths.outputs={outputs}", "tracker=none", *arguments, cwd=folder, **canary
    )
    assert ended.code == 2, ended.out + ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert not outputs.exists()
    return ended.err


@pytest.mark.parametrize("way", SWEEPS)
def test_a_sweep_file_runs_nothing_foreign(way, trap, command_line):
    text, key = SWEEPS[way]
    text = "# @package _global_\n" + text.replace("FOLDER", str(trap)) + "\n"
    (trap / "conf" / "sweeps" / "foreign.yaml").write_text(text)
    added = ["--config-dir", str(trap / "conf"), "+sweeps=foreign", "-m"]
    assert key in refused(command_line, trap, *added)


@pytest.mark.parametrize("way", FLAGS)
def test_a_flag_loads_nothing_foreign(way, trap, command_line):
    arguments, key = FLAGS[way]
    assert key in refused(
        command_line, trap, *(word.replace("FOLDER", str(trap)) for word in arguments)
    )


def test_what_hydra_has_of_its_own_is_built(command_line, tmp_path):
    logging = "hydra/job_logging=default"
    ended = command_line.run(
        "train", "-m", f"paths.outputs={tmp_path}", "tracker=none", "dfr=none", "method.epochs=1",
        "backbone=mlp", "hydra/launcher=basic", "hydra/sweeper=basic", logging, cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert len(list(tmp_path.glob("runs/*/*/*/seed0/done"))) == 1


def test_shell_lines_of_a_site_and_of_the_command_line_are_taken(tmp_path):
    from hydra import compose, initialize_config_dir

    from spurcor.config import composition, resolvers
    from spurcor.system import places

    composition.install()
    resolvers.register()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ours.yaml").write_text("setup: [module load cuda]\n")
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        found = [f"hydra.searchpath=[file://{tmp_path}]", "site=ours", "hydra/launcher=slurm"]
        whole = "partition account qos constraint timeout_min gpus_per_node cpus_per_task mem_gb"
        whole += " array_parallelism max_num_timeout signal_delay_s additional_parameters"
        found += [f"+site.{key}=null" for key in whole.split()]
        cfg = compose("train", found, return_hydra_config=True)
        assert list(cfg.hydra.launcher.setup) == ["module load cuda"]
        typed = ["hydra/launcher=slurm", "hydra.launcher.setup=[module purge]"]
        cfg = compose("train", typed, return_hydra_config=True)
        assert list(cfg.hydra.launcher.setup) == ["module purge"]
