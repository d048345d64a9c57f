"""The validated configuration, and the input functions of the rules."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake.sourcecache import LocalSourceFile

if not isinstance(workflow.current_basedir, LocalSourceFile):
    sys.exit(
        "error: finallyse runs scripts of its own folder: clone its repository and name the clone's workflow/Snakefile"
    )

PROJECT = Path(workflow.current_basedir).parents[1]
sys.path.insert(0, str(PROJECT / "src"))

from finallyse.compare import compared_systems
from finallyse.config import (
    has_input,
    load_pipeline,
    network_checkpoints,
    paths_below,
    starts,
)
from finallyse.errors import one_line_errors
from finallyse.hardware import visible_gpus
from finallyse.finished import keep
from finallyse.metrics import metrics_registry
from finallyse.options import Experiment, from_dict
from finallyse.progress import NowAndThen
from finallyse.plugins import needed
from finallyse.recipe import choices
from finallyse.schema import argument_defaults, current_schema, read_schema
from finallyse.sweep import read_sweep

IN_PROJECT = PROJECT.samefile(Path.cwd())


def own(path):
    """The path of a file that comes with the project, for rules and configs."""
    return path if IN_PROJECT else str(PROJECT / path)


def config_sources():
    """The files of the config, later over earlier, and the options over them.

    A folder other than the project's may have a config/config.yaml over the project's. A workflow of which this is a
    module says with `config:` what is different from the project's.
    """
    files = [own("config/config.yaml")]
    if not workflow.modifier.is_main_snakefile():
        return [*files, config] if workflow.modifier.skip_configfile else files, {}
    if not IN_PROJECT and Path("config/config.yaml").is_file():
        files.append("config/config.yaml")
    return [*files, *workflow.overwrite_configfiles], workflow.config_settings.config


def anywhere(command):
    """A shell command that runs scripts/..., for the folder where Snakemake runs.

    A job runs again when the text of its command changes: in the project's folder it is the command as written, and
    elsewhere it does not say where the project is.
    """
    if IN_PROJECT:
        return command
    return command.replace(" scripts/", ' "$FINALLYSE_PROJECT"/scripts/')


os.environ.update(FINALLYSE_PROJECT=str(PROJECT))

# Jobs run `python scripts/...`, which must be the Python that runs Snakemake, even if its environment is not activated.
# Conda environments and containers prepend their own to PATH, and find the package through PYTHONPATH.
for variable, folder in (
    ("PATH", Path(sys.executable).parent),
    ("PYTHONPATH", PROJECT / "src"),
):
    os.environ[variable] = os.pathsep.join(
        filter(None, [str(folder), os.environ.get(variable)])
    )

# Keep library caches beside Snakemake's.
for variable, folder in (
    ("MPLCONFIGDIR", "matplotlib"),
    ("XDG_CACHE_HOME", "cache"),
    ("IPYTHONDIR", "ipython"),
    ("JUPYTER_CONFIG_DIR", "jupyter"),
    ("JUPYTER_DATA_DIR", "jupyter"),
    ("JUPYTER_RUNTIME_DIR", "jupyter"),
):
    os.environ.setdefault(variable, str(Path.cwd() / ".snakemake" / folder))


configfile: own("config/config.yaml")


with one_line_errors(status=1):
    SCHEMA = read_schema(own("config/schema.json"))
    config = load_pipeline(*config_sources(), SCHEMA, PROJECT)
    SCHEMA = current_schema(SCHEMA)

if config["container"]:

    container: config["container"]


RESULTS = config["results"]
RESOURCES = config["resources"]
EXPERIMENTS = config["experiments"]
# Those to train; the others are only trained if one of these starts from their checkpoints.
TARGETS = config["targets"]
SWEEPS = {
    name: sweep
    for name, entry in config["sweep"].items()
    if (sweep := read_sweep(name, entry)).networks.keys() & set(TARGETS)
}
# Those with a part of the report of their own: the networks of a sweep have a table.
SWEPT = {name for sweep in SWEEPS.values() for name in sweep.networks} & set(TARGETS)
NETWORKS = [name for name in TARGETS if name not in SWEPT]
CHECKPOINTS = network_checkpoints(config)
DEFAULTS = argument_defaults(SCHEMA)
COMPARED = {
    f"{system.network}/{system.slug}": system for system in compared_systems(config)
}


# One GPU job at a time on a workstation: `gpu` itself is not limited there, since a limit would also scale down a
# training job that requests several GPUs. A resource of local scope does not apply to submitted jobs: on a cluster the
# scheduler allocates the GPUs. (The executor is not known yet when this file is parsed.)
# Without a GPU, trainings are limited by cores.
resource_scopes:
    gpu_jobs="local",


if (
    workflow.is_main_process
    and "gpu_jobs" not in workflow.global_resources
    and visible_gpus()
):
    workflow.register_resource("gpu_jobs", 1)


wildcard_constraints:
    network="|".join(map(re.escape, EXPERIMENTS)),


def training_manifests(wildcards):
    """The manifests of speech, noises and impulse responses that a network is trained and validated on."""
    return paths_below(EXPERIMENTS[wildcards.network], f"{RESOURCES}/prepared/")


def training_weights(wildcards):
    """The pretrained weights that a network is trained with."""
    return weight_files(
        paths_below(EXPERIMENTS[wildcards.network], f"{RESOURCES}/weights/")
    )


def initial_checkpoint(wildcards):
    """The checkpoints that a network starts from, if any: of other networks, or user files.

    The best weights of a network are not declared as output, since Snakemake would delete them before a training is
    continued; they exist whenever its checkpoint does.
    """
    return sorted(
        {
            f"{RESULTS}/{CHECKPOINTS[start]}.ckpt" if start in CHECKPOINTS else start
            for start in starts(EXPERIMENTS[wildcards.network])
        }
    )


def training_plugins(wildcards):
    """The Python files with parts of a network that are not the package's."""
    return [p for p in EXPERIMENTS[wildcards.network]["plugins"] if p.endswith(".py")]


def measured_metrics():
    """The configuration's metrics as an option of scripts/evaluate.py, with the files of those of plugins."""
    files = needed(config["plugins"], {"metric": config["metrics"]})
    return [
        *config["metrics"],
        *(word for file in files for word in ("--plugin", file)),
    ]


def training_recipe(wildcards):
    """What decides whether a network is trained again: the options that define it, and how long it is trained."""
    experiment = from_dict(Experiment, EXPERIMENTS[wildcards.network])
    recipe = choices(experiment, DEFAULTS)
    return json.dumps(recipe | {"train.steps": experiment.train.steps})


def noisy_option(wildcards, input):
    """The unprocessed files of a network's validation set, as an option of scripts/evaluate.py; vocoders have none."""
    experiment = EXPERIMENTS[wildcards.network]
    return ["--noisy", f"{input.folder}/noisy"] if has_input(experiment) else []


def compared_folder(wildcards):
    """The folder of another system's files."""
    return str(COMPARED[f"{wildcards.network}/{wildcards.system}"].folder)


def weight_files(paths):
    """The files of the registry's weights that contain `paths`."""
    names = {Path(path).relative_to(f"{RESOURCES}/weights").parts[0] for path in paths}
    return [file for name in sorted(names) for file in downloaded_files(name)]


def swept(*files, sweeps=SWEEPS):
    """These files in the folder of results, e.g. `metrics/{network}.csv`, of the sweeps' networks that are trained."""
    return [
        f"{RESULTS}/{file.format(network=network)}"
        for sweep in sweeps
        for network in SWEEPS[sweep].networks
        if network in SWEPT
        for file in files
    ]


def named_targets():
    """The files of each target that the config names: a network's checkpoint; a sweep's checkpoints and metrics."""
    metrics = ("metrics/{network}.csv", "metrics/{network}.summary.csv")
    return {
        **{f"networks.{name}": [f"{RESULTS}/{name}.ckpt"] for name in EXPERIMENTS},
        **{
            f"sweep.{name}": swept("{network}.ckpt", *metrics, sweeps=[name])
            for name in SWEEPS
        },
    }


def skipped_metrics():
    """The configuration's metrics whose packages are not installed."""
    return [name for name in config["metrics"] if metrics_registry[name].absent()]


def metric_weights(registered=True):
    """The weights of the configuration's metrics that are not skipped: the registry's, or else the user's own."""
    metrics = [
        metrics_registry[name](RESOURCES)
        for name in config["metrics"]
        if name not in skipped_metrics()
    ]
    paths = [
        metric.weights
        for metric in metrics
        if metric.weights
        and metric.weights.is_relative_to(f"{RESOURCES}/weights") == registered
    ]
    return weight_files(paths) if registered else [str(path) for path in paths]


def all_training_data():
    """Manifests and weights of all networks of this config."""
    files = []
    for network in EXPERIMENTS:
        files += paths_below(EXPERIMENTS[network], f"{RESOURCES}/prepared/")
        files += weight_files(
            paths_below(EXPERIMENTS[network], f"{RESOURCES}/weights/")
        )
    return sorted(set(files))


def planned(proxy):
    """The jobs of a rule, e.g. `rules.report`, that are to be run; a module's rules have other names in the workflow."""
    return [job for job in workflow.dag.needrun_jobs() if job.rule is proxy.rule]


def waiting_networks():
    """The networks that this run will train."""
    return sorted(job.wildcards.network for job in planned(rules.train_network))


def require_gpu():
    """Stop before any download if networks would be trained here, no GPU is visible and `allow_cpu` is not set."""
    if (
        not (workflow.is_main_process and workflow.local_exec)
        or config["allow_cpu"]
        or visible_gpus()
    ):
        return
    if waiting := waiting_networks():
        more = f" and {len(waiting) - 9} more" if len(waiting) > 9 else ""
        sys.exit(
            f"error: no GPU is visible, and training {', '.join(waiting[:9])}{more} at this size takes weeks on a CPU. "
            "Run on a machine with a GPU or through a cluster profile, take --configfile config/demo.yaml for small "
            "networks, or insist with --config allow_cpu=true"
        )


def require_trainable_networks():
    """Stop before any download if a training would fail: `finallyse check`, for networks that have not passed it."""
    if not (config["preflight"] and workflow.is_main_process and find_spec("torch")):
        return
    if waiting_networks():
        checked = subprocess.run(
            [sys.executable, "-m", "finallyse.preflight", *waiting_networks()],
            input=json.dumps(config),
            text=True,
            stdout=sys.stderr,
            check=False,
        )
        if checked.returncode:
            sys.exit("error: a training would fail, see above; nothing was started")


def goal_options():
    """The networks' goals in the configuration, as options of scripts/improvement.py."""
    improves = [
        f"{name}.{metric}"
        for name in NETWORKS
        for metric in config["networks"][name]["improves"]
    ]
    reaches = [
        f"{name}.{metric}={value}"
        for name in NETWORKS
        for metric, value in config["networks"][name]["reaches"].items()
    ]
    return [
        *(["--improves", *improves] if improves else []),
        *(["--reaches", *reaches] if reaches else []),
    ]


def require_goals():
    """Stop before any training if target `learn` is requested and no network has a goal."""
    if workflow.is_main_process and not goal_options():
        if planned(rules.learn):
            sys.exit(
                "error: target learn checks what is asked of the networks, and nothing is: set networks.<name>.improves "
                "or networks.<name>.reaches, e.g. with --configfile config/learn.yaml"
            )


def keep_checkpoints():
    """Keep the checkpoints that Snakemake deletes before their trainings, which may find that nothing has changed."""
    for job in planned(rules.train_network):
        folder = Path(RESULTS, "state", job.wildcards.network)
        keep(Path(job.output.ckpt), folder)


def retry_trainings():
    """Retry trainings, at least as often as `--retries` says, but not after a mistake, which would only be repeated.

    A training ends a mistake (exit status 2, which neither torchrun nor a cluster passes on) with a line `error: ...`.
    """
    training = rules.train_network.rule
    training.restart_times = max(
        training.restart_times, workflow.execution_settings.retries
    )

    def restart_times(job):
        logs = job.log if job.rule is training else []
        mistaken = any(errors_in(path) for path in logs)
        return 0 if mistaken else job.rule.restart_times

    # Snakemake knows the number of retries of a rule only, and asks the job for it after a failure.
    Job.restart_times = property(restart_times)


PROGRESS = []


def tell_progress():
    """Print how far the running trainings are, every `progress_minutes`, unless Snakemake is to be quiet about it."""
    if workflow.is_main_process and config["progress_minutes"]:
        from finallyse.status import Running  # not needed for a dry run

        steps = {name: EXPERIMENTS[name]["train"]["steps"] for name in NETWORKS}
        PROGRESS.append(
            NowAndThen(
                Running(RESULTS, steps).lines,
                lambda line: logger.info(line, extra={"quietness": Quietness.PROGRESS}),
                60 * config["progress_minutes"],
            )
        )


def end_progress():
    """Stop what `tell_progress` started."""
    for progress in PROGRESS:
        progress.stop()


def errors_in(path):
    """The lines of a log that tell of mistakes."""
    if not Path(path).is_file():
        return []
    text = Path(path).read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith("error: ")]


def tell_errors(logs):
    """Print the errors in the logs of the failed jobs at the end of the output."""
    failed = [
        path
        for log in logs
        for path in re.findall(
            r"^\s+log: (.+) \(check log file",
            Path(log).read_text(errors="replace"),
            re.MULTILINE,
        )
    ]
    for path in dict.fromkeys(failed):
        errors = errors_in(path)
        if not errors and Path(path).is_file():
            errors = Path(path).read_text(errors="replace").splitlines()[-3:]
        # enough for a line per network and metric of `learn`, but not for each of a thousand files
        print(f"\n{path}:", *errors[-50:], sep="\n", file=sys.stderr)
