"""Preparation: converts each corpus to mono WAVs at each requested rate, with manifests of its splits."""

from finallyse.corpora.layouts import CORPORA


wildcard_constraints:
    rate=r"\d+",


with one_line_errors(status=1):
    for network in NETWORKS:
        LOCATIONS.refuse_unknown(
            network, paths_below(EXPERIMENTS[network], f"{RESOURCES}/prepared/")
        )

# Corpora with recordings that no training may use; a folder in place of a published corpus may have a folder `test`.
WITH_TEST = [
    name
    for name, corpus in CORPORA.items()
    if "test" in corpus.splits or LOCATIONS.own_folder(name)
]


# The WAVs are not declared as output, so that finished ones are kept after an interruption.
rule prepare_corpus:
    input:
        unpacked=lambda wildcards: LOCATIONS.unpacked(wildcards.corpus),
    output:
        train=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/train.csv",
        validation=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/validation.csv",
        dropped=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/dropped.csv",
    log:
        f"{RESULTS}/logs/prepare_corpus/{{corpus}}_{{rate}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_corpus/{{corpus}}_{{rate}}.tsv"
    wildcard_constraints:
        corpus="|".join(name for name in CORPORA if name not in WITH_TEST),
    conda:
        "../../envs/finallyse.yaml"
    threads: config["prepare_jobs"]
    resources:
        mem_mb=lambda wildcards, threads: 1000 * (1 + threads),
        runtime=360,
    params:
        source=lambda wildcards: LOCATIONS.folder(wildcards.corpus),
        content=lambda wildcards: LOCATIONS.fingerprint(wildcards.corpus),
        folder=lambda wildcards: f"{RESOURCES}/prepared/{wildcards.corpus}/{wildcards.rate}",
        seed=config["seed"],
        min_bak=lambda wildcards: LOCATIONS.min_bak(wildcards.corpus),
        cut=lambda wildcards: (
            "--accept-cut" if LOCATIONS.accept_cut(wildcards.corpus) else ""
        ),
    message:
        "Preparing {wildcards.corpus} at {wildcards.rate} Hz; progress: {log}"
    shell:
        anywhere(
            "python scripts/prepare.py --corpus {wildcards.corpus} --source {params.source:q} --output {params.folder:q} "
            "--rate {wildcards.rate} --jobs {threads} --seed {params.seed} "
            "--min-bak {params.min_bak} {params.cut} > {log:q} 2>&1"
        )


use rule prepare_corpus as prepare_corpus_with_test with:
    output:
        train=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/train.csv",
        validation=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/validation.csv",
        test=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/test.csv",
        dropped=f"{RESOURCES}/prepared/{{corpus}}/{{rate}}/dropped.csv",
    log:
        f"{RESULTS}/logs/prepare_corpus_with_test/{{corpus}}_{{rate}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_corpus_with_test/{{corpus}}_{{rate}}.tsv"
    wildcard_constraints:
        corpus="|".join(WITH_TEST),


# Recordings of one's own, under a name of one's own. All that says how to read them is in one string.
use rule prepare_corpus_with_test as prepare_own_corpus with:
    log:
        f"{RESULTS}/logs/prepare_own_corpus/{{corpus}}_{{rate}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_own_corpus/{{corpus}}_{{rate}}.tsv"
    wildcard_constraints:
        corpus="|".join(LOCATIONS.own) or "(?!)",
    params:
        source=lambda wildcards: LOCATIONS.folder(wildcards.corpus),
        content=lambda wildcards: LOCATIONS.fingerprint(wildcards.corpus),
        folder=lambda wildcards: f"{RESOURCES}/prepared/{wildcards.corpus}/{wildcards.rate}",
        seed=config["seed"],
        min_bak=lambda wildcards: LOCATIONS.min_bak(wildcards.corpus),
        cut=lambda wildcards: (
            ("--accept-cut " if LOCATIONS.accept_cut(wildcards.corpus) else "")
            + LOCATIONS.own_options(wildcards.corpus)
        ),


# Audio examples and plots of the degradations, if a network of this config is trained with them.
AUGMENTATIONS_PAGE = (
    [f"{RESULTS}/augmentations.html"]
    if f"{RESOURCES}/prepared/dns5-noise/16000/train.csv" in all_training_data()
    else []
)


rule show_augmentations:
    input:
        notebook=own("notebooks/augmentations.ipynb"),
        speech=f"{RESOURCES}/prepared/libritts-r/16000/validation.csv",
        noise=f"{RESOURCES}/prepared/dns5-noise/16000/train.csv",
        rooms=f"{RESOURCES}/prepared/dns5-rooms/16000/train.csv",
        microphones=f"{RESOURCES}/prepared/micirp/16000/train.csv",
    output:
        page=report(
            f"{RESULTS}/augmentations.html",
            caption="../report/augmentations.rst",
            category="Data",
            labels={"what": "the augmentations, one by one and all in a row"},
        ),
    log:
        f"{RESULTS}/logs/show_augmentations.log",
    benchmark:
        f"{RESULTS}/benchmarks/show_augmentations.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    message:
        "Executing {input.notebook}"
    shell:
        anywhere(
            "python scripts/run_notebook.py {input.notebook:q} --output {output.page:q} --set speech={input.speech:q} "
            "noise={input.noise:q} rooms={input.rooms:q} microphones={input.microphones:q} > {log:q} 2>&1"
        )
