"""Downloads of corpora and weights, unpacking, and the archives that replace them in the demo."""

from finallyse.corpora.locations import COLLECTION, Locations, folder_fingerprint
from finallyse.demo.pack import OF_SPEECH, PACKERS
from finallyse.corpora.sources import read_sources

DEMO_SPEECH = config["demo_speech"] or own("resources/demo/speech")

with one_line_errors(status=1):
    LOCATIONS = Locations(
        read_sources(own("resources/datasets.yaml")), config["corpora"], RESOURCES
    )
    LOCATIONS.refuse_outputs_inside(RESULTS, DEMO_SPEECH if LOCATIONS.packs() else None)
    if LOCATIONS.packs():
        DEMO_SPEECH_CONTENT = folder_fingerprint(DEMO_SPEECH)

downloaded_files = LOCATIONS.downloads
ARCHIVES = [
    name
    for name, source in LOCATIONS.sources.items()
    if source.unpack not in (None, "files", "simulated")
]
COLLECTIONS = [
    name for name, source in LOCATIONS.sources.items() if source.unpack == "files"
]
WEIGHTS = [name for name, source in LOCATIONS.sources.items() if not source.is_corpus]


# Compute nodes often have no internet access: downloads run where Snakemake runs.
rule download:
    input:
        source=lambda wildcards: LOCATIONS.local_files(wildcards.source, wildcards.file),
    output:
        file=f"{RESOURCES}/{{place}}/{{source}}/{{file}}",
    log:
        f"{RESULTS}/logs/download/{{place}}_{{source}}_{{file}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download/{{place}}_{{source}}_{{file}}.tsv"
    wildcard_constraints:
        place="downloads|weights",
        source="|".join(ARCHIVES + WEIGHTS),
        file="|".join(
            re.escape(file.name)
            for name in ARCHIVES + WEIGHTS
            for file in LOCATIONS.sources[name].files
        ),
    retries: 1
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=2880,
    params:
        # Mirrors provide the same files: params that are functions of the output do not trigger reruns.
        base_url=lambda wildcards, output: LOCATIONS.base_url(wildcards.source),
        verify=lambda wildcards, output: LOCATIONS.verify(wildcards.source),
        lock=f"{RESOURCES}/checksums.lock",
    message:
        "Downloading {wildcards.file} of {wildcards.source}; progress: {log}"
    shell:
        anywhere(
            "python scripts/download.py {wildcards.source} {wildcards.file:q} --output {output.file:q} "
            "--base-url {params.base_url:q} --verify {params.verify} --lock {params.lock:q} > {log:q} 2>&1"
        )


rule download_collection:
    input:
        source=lambda wildcards: LOCATIONS.local_files(wildcards.source),
    output:
        table=f"{RESOURCES}/downloads/{{source}}/{COLLECTION}",
    log:
        f"{RESULTS}/logs/download_collection/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download_collection/{{source}}.tsv"
    wildcard_constraints:
        source="|".join(COLLECTIONS),
    retries: 1
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        base_url=lambda wildcards, output: LOCATIONS.base_url(wildcards.source),
        verify=lambda wildcards, output: LOCATIONS.verify(wildcards.source),
        lock=f"{RESOURCES}/checksums.lock",
    message:
        "Downloading the files of {wildcards.source}; progress: {log}"
    shell:
        anywhere(
            "python scripts/download.py {wildcards.source} --output {output.table:q} "
            "--base-url {params.base_url:q} --verify {params.verify} --lock {params.lock:q} > {log:q} 2>&1"
        )


# Unpacked files are not declared as output, so that an interrupted job can resume.
rule unpack:
    input:
        archive=f"{RESOURCES}/downloads/{{corpus}}/{{archive}}",
    output:
        done=f"{RESOURCES}/unpacked/{{corpus}}/.unpacked/{{archive}}.txt",
    log:
        f"{RESULTS}/logs/unpack/{{corpus}}_{{archive}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/unpack/{{corpus}}_{{archive}}.tsv"
    wildcard_constraints:
        corpus="|".join(ARCHIVES + COLLECTIONS),
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        folder=f"{RESOURCES}/unpacked/{{corpus}}",
    message:
        "Unpacking {wildcards.archive} of {wildcards.corpus}; progress: {log}"
    shell:
        anywhere(
            "python scripts/unpack.py {input.archive:q} --into {params.folder:q} --marker {output.done:q} > {log:q} 2>&1"
        )


rule simulate_rooms:
    output:
        done=LOCATIONS.unpacked("simulated-rooms"),
    log:
        f"{RESULTS}/logs/simulate_rooms.log",
    benchmark:
        f"{RESULTS}/benchmarks/simulate_rooms.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        folder=lambda wildcards: LOCATIONS.folder("simulated-rooms"),
        rooms=config["rooms"]["count"],
        rate=config["rooms"]["rate"],
        rt60_s=config["rooms"]["rt60_s"],
        seed=config["seed"],
    message:
        "Simulating {params.rooms} rooms; progress: {log}"
    shell:
        anywhere(
            "python scripts/simulate_rooms.py --into {params.folder:q} --count {params.rooms} --rate {params.rate} "
            "--rt60 {params.rt60_s} --seed {params.seed} --marker {output.done:q} > {log:q} 2>&1"
        )


# The demo's archives: used only if a base URL in the config is the folder that they are written to.
# They take seconds: not worth a cluster job.
rule collect_demo_speech:
    output:
        table=f"{RESOURCES}/archives/speech/speech.csv",
    log:
        f"{RESULTS}/logs/collect_demo_speech.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_demo_speech.tsv"
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        folder=DEMO_SPEECH,
        content=lambda wildcards: DEMO_SPEECH_CONTENT,
    message:
        "Collecting speech from {params.folder}"
    shell:
        anywhere(
            "python scripts/collect_demo_speech.py {params.folder:q} --output {output.table:q} > {log:q} 2>&1"
        )


for name in PACKERS:

    rule:
        name:
            f"pack_demo_{name.replace('-', '_')}"
        input:
            speech=rules.collect_demo_speech.output.table if name in OF_SPEECH else [],
        output:
            archives=LOCATIONS.archives(name),
        log:
            f"{RESULTS}/logs/pack_demo/{name}.log",
        benchmark:
            f"{RESULTS}/benchmarks/pack_demo/{name}.tsv"
        localrule: True
        conda:
            "../../envs/finallyse.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            source=name,
            folder=lambda wildcards, output: Path(output[0]).parent,
            speech=lambda wildcards, input: (
                ["--speech", input.speech] if input.speech else []
            ),
            downloads=LOCATIONS.download_folder(name),
            lock=f"{RESOURCES}/checksums.lock",
        message:
            "Packing the demo's {params.source}"
        shell:
            anywhere(
                "python scripts/pack_demo.py {params.source} {params.speech:q} --into {params.folder:q} "
                "--lock {params.lock:q} --downloads {params.downloads:q} > {log:q} 2>&1"
            )
