"""Evaluation: enhances each network's validation set and scores it."""

from finallyse.corpora.locations import folder_fingerprint

# What the network that comes with the package does: needs no training.
EXAMPLE = [f"{RESULTS}/example.wav"] if config["example"] else []


rule enhance_example:
    input:
        recording=config["example"] or [],
    output:
        enhanced=f"{RESULTS}/example.wav",
    log:
        f"{RESULTS}/logs/enhance_example.log",
    benchmark:
        f"{RESULTS}/benchmarks/enhance_example.tsv"
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    message:
        "Enhancing {input.recording} with the network that comes with the package"
    shell:
        "python -m finallyse.cli enhance {input.recording:q} {output.enhanced:q} --rate 16000 --force > {log:q} 2>&1"


rule enhance_validation:
    input:
        config=f"{RESULTS}/configs/{{network}}.yaml",
        ckpt=f"{RESULTS}/{{network}}.ckpt",
        data=training_manifests,
        weights=training_weights,
    output:
        folder=directory(f"{RESULTS}/enhanced/{{network}}"),
    log:
        f"{RESULTS}/logs/enhance_validation/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/enhance_validation/{{network}}.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: lambda wildcards: config["networks"][wildcards.network]["threads"]
    resources:
        gpu=1,
        gpu_jobs=1,
        mem_mb=16000,
        runtime=240,
    message:
        "Enhancing the validation set of {wildcards.network}"
    shell:
        anywhere(
            "python scripts/inference.py exp.config_path={input.config:q} exp.threads={threads} metrics=[] > {log:q} 2>&1"
        )


# On the CPU, so that the GPU is free for a training. Metrics whose packages are not installed are skipped: the summary
# says why.
rule compute_metrics:
    input:
        folder=f"{RESULTS}/enhanced/{{network}}",
        weights=metric_weights(),
    output:
        table=f"{RESULTS}/metrics/{{network}}.csv",
        summary=f"{RESULTS}/metrics/{{network}}.summary.csv",
    log:
        f"{RESULTS}/logs/compute_metrics/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compute_metrics/{{network}}.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: config["evaluate_jobs"]
    resources:
        mem_mb=lambda wildcards, threads: 3000 * threads,
        runtime=1440,
    params:
        metrics=measured_metrics(),
        skipped=skipped_metrics(),
        own_weights=metric_weights(registered=False),
        resources=lambda wildcards: RESOURCES,
        noisy=noisy_option,
    message:
        "Measuring {wildcards.network}"
    shell:
        anywhere(
            "python scripts/evaluate.py --enhanced {input.folder:q}/enhanced --reference {input.folder:q}/reference"
            " {params.noisy:q} --score-reference --metrics {params.metrics} --skip-missing --resources {params.resources:q}"
            " --device cpu --jobs {threads} --output {output.table:q} > {log:q} 2>&1"
        )


# Another system's files, measured like the network's that it is compared with.
rule compute_compared_metrics:
    input:
        folder=f"{RESULTS}/enhanced/{{network}}",
        weights=rules.compute_metrics.input.weights,
    output:
        table=f"{RESULTS}/metrics/{{network}}/{{system}}.csv",
        summary=f"{RESULTS}/metrics/{{network}}/{{system}}.summary.csv",
    log:
        f"{RESULTS}/logs/compute_compared_metrics/{{network}}/{{system}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compute_compared_metrics/{{network}}/{{system}}.tsv"
    wildcard_constraints:
        system="|".join(re.escape(system.slug) for system in COMPARED.values())
        or "(?!)",
    conda:
        "../../envs/finallyse.yaml"
    threads: config["evaluate_jobs"]
    resources:
        mem_mb=lambda wildcards, threads: 3000 * threads,
        runtime=1440,
    params:
        compared=compared_folder,
        content=lambda wildcards: folder_fingerprint(compared_folder(wildcards)),
        metrics=measured_metrics(),
        skipped=skipped_metrics(),
        own_weights=metric_weights(registered=False),
        resources=lambda wildcards: RESOURCES,
        noisy=noisy_option,
    message:
        "Measuring {params.compared}, to be compared with {wildcards.network}"
    shell:
        anywhere(
            "python scripts/evaluate.py --enhanced {params.compared:q} --reference {input.folder:q}/reference {params.noisy:q}"
            " --only-referenced --metrics {params.metrics} --skip-missing --resources {params.resources:q} --device cpu"
            " --jobs {threads} --output {output.table:q} > {log:q} 2>&1"
        )
