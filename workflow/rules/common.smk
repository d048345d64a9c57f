"""The validated configuration, and the input functions of the rules."""

import json
import os
import re
import sys
from pathlib import Path

from snakemake.jobs import Job

from finallyse.compare import compared_systems
from finallyse.config import has_input, load_pipeline, paths_below
from finallyse.errors import one_line_errors
from finallyse.hardware import visible_gpus
from finallyse.finished import keep
from finallyse.metrics import metrics_registry
from finallyse.options import Experiment, from_dict
from finallyse.recipe import choices
from finallyse.schema import argument_defaults, read_schema

# Jobs run `python scripts/...`, which must be the Python that runs Snakemake, even if its environment is not activated.
# Conda environments and containers prepend their own to PATH, and find the package through PYTHONPATH.
for variable, folder in (
    ("PATH", Path(sys.executable).parent),
    ("PYTHONPATH", Path(workflow.basedir) / "src"),
):
    os.environ[variable] = os.pathsep.join(
        filter(None, [str(folder), os.environ.get(variable)])
    )

# Keep library caches in the project's folder.
for variable, folder in (
    ("MPLCONFIGDIR", "matplotlib"),
    ("XDG_CACHE_HOME", "cache"),
    ("IPYTHONDIR", "ipython"),
    ("JUPYTER_CONFIG_DIR", "jupyter"),
    ("JUPYTER_DATA_DIR", "jupyter"),
    ("JUPYTER_RUNTIME_DIR", "jupyter"),
):
    os.environ.setdefault(variable, str(Path(workflow.basedir) / ".snakemake" / folder))

with one_line_errors(status=1):
    SCHEMA = read_schema("config/schema.json")
    config = load_pipeline(
        ["config/config.yaml", *workflow.overwrite_configfiles],
        workflow.config_settings.config,
        SCHEMA,
    )

if config["container"]:

    container: config["container"]


RESULTS = config["results"]
RESOURCES = config["resources"]
EXPERIMENTS = config["experiments"]
NETWORKS = list(EXPERIMENTS)
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
    network="|".join(map(re.escape, NETWORKS)),


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
    experiment = EXPERIMENTS[wildcards.network]
    starts = [experiment[part]["init_from"] for part in ("generator", "discriminators")]
    of_networks = {f"{RESULTS}/{n}.best.ckpt": f"{RESULTS}/{n}.ckpt" for n in NETWORKS}
    return sorted({of_networks.get(start, start) for start in starts if start})


def training_recipe(wildcards):
    """What decides whether a network is trained again: the options that define it, and how long it is trained."""
    experiment = from_dict(Experiment, EXPERIMENTS[wildcards.network])
    recipe = choices(experiment, argument_defaults(SCHEMA))
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
    for network in NETWORKS:
        files += paths_below(EXPERIMENTS[network], f"{RESOURCES}/prepared/")
        files += weight_files(
            paths_below(EXPERIMENTS[network], f"{RESOURCES}/weights/")
        )
    return sorted(set(files))


def require_gpu():
    """Stop before any download if networks would be trained here, no GPU is visible and `allow_cpu` is not set."""
    if (
        not (workflow.is_main_process and workflow.local_exec)
        or config["allow_cpu"]
        or visible_gpus()
    ):
        return
    waiting = [
        job.wildcards.network
        for job in workflow.dag.needrun_jobs()
        if job.rule.name == "train_network"
    ]
    if waiting:
        sys.exit(
            f"error: no GPU is visible, and training {', '.join(sorted(waiting))} at this size takes weeks on a CPU. "
            "Run on a machine with a GPU or through a cluster profile, take --configfile config/demo.yaml for small "
            "networks, or insist with --config allow_cpu=true"
        )


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
        if any(job.rule.name == "learn" for job in workflow.dag.needrun_jobs()):
            sys.exit(
                "error: target learn checks what is asked of the networks, and nothing is: set networks.<name>.improves "
                "or networks.<name>.reaches, e.g. with --configfile config/learn.yaml"
            )


def keep_checkpoints():
    """Keep the checkpoints that Snakemake deletes before their trainings, which may find that nothing has changed."""
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "train_network":
            folder = Path(RESULTS, "state", job.wildcards.network)
            keep(Path(job.output.ckpt), folder)


def retry_trainings():
    """Retry trainings, at least as often as `--retries` says, but not after a mistake, which would only be repeated.

    A training ends a mistake (exit status 2, which neither torchrun nor a cluster passes on) with a line `error: ...`.
    """
    training = workflow.get_rule("train_network")
    training.restart_times = max(
        training.restart_times, workflow.execution_settings.retries
    )

    def restart_times(job):
        logs = job.log if job.rule is training else []
        mistaken = any(errors_in(path) for path in logs)
        return 0 if mistaken else job.rule.restart_times

    # Snakemake knows the number of retries of a rule only, and asks the job for it after a failure.
    Job.restart_times = property(restart_times)


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
