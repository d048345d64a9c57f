"""Trains HiFi-GAN, HiFi++ and FINALLY, measures them and writes a report.

snakemake --cores 8 results/finally_stage3.ckpt        # the paper
snakemake --cores 8 finally_stage3                     # the same, by the network's name
snakemake --cores 2 --configfile config/demo.yaml      # everything on the embedded corpus, small networks
snakemake --cores 8 data                               # only fetch and prepare the corpora
snakemake --cores 8 learn                              # everything, and check that each network beats its input
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

if Path.cwd().resolve() != Path(workflow.basedir).resolve():
    sys.exit(
        f"error: run Snakemake in the project's folder, without --directory: cd {workflow.basedir}. "
        "Results and data may be elsewhere: --config results=DIR resources=DIR"
    )


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        checkpoints=expand(
            "{results}/{network}.ckpt", results=RESULTS, network=NETWORKS
        ),
        report=f"{RESULTS}/report.html",
        augmentations=AUGMENTATIONS_PAGE,
        example=EXAMPLE,


rule data:
    input:
        all_training_data(),


for network in NETWORKS:
    if network in [rule.name for rule in workflow.rules]:
        sys.exit(
            f"error: config: networks.{network}: is also the name of a rule; give the network another name"
        )

    rule:
        name:
            network
        input:
            ckpt=f"{RESULTS}/{network}.ckpt",


onstart:
    require_gpu()
    require_goals()
    require_trainable_networks()
    retry_trainings()
    keep_checkpoints()
    tell_progress()


onsuccess:
    end_progress()


onerror:
    end_progress()
    tell_errors(log)
