"""Training: each network's complete experiment as a file, then its checkpoint."""


localrules:
    write_experiment,


rule write_experiment:
    output:
        config=f"{RESULTS}/configs/{{network}}.yaml",
    params:
        experiment=lambda wildcards: json.dumps(EXPERIMENTS[wildcards.network]),
    log:
        f"{RESULTS}/logs/write_experiment/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_experiment/{{network}}.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    message:
        "Writing the complete experiment of {wildcards.network}"
    shell:
        "python scripts/write_experiment.py {params.experiment:q} {output.config} 2> {log}"


rule train_network:
    input:
        config=f"{RESULTS}/configs/{{network}}.yaml",
        data=training_manifests,
        weights=training_weights,
        start=initial_checkpoint,
    output:
        ckpt=f"{RESULTS}/{{network}}.ckpt",
    log:
        f"{RESULTS}/logs/train_network/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_network/{{network}}.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: lambda wildcards: config["networks"][wildcards.network]["threads"]
    resources:
        gpu=lambda wildcards: config["networks"][wildcards.network]["gpus"],
        gpu_jobs=1,
        nodes=1,
        mem_mb=lambda wildcards: int(1000 * config["networks"][wildcards.network]["mem_gb"]),
        runtime=lambda wildcards: int(60 * config["networks"][wildcards.network]["hours"]),
    params:
        launch=lambda wildcards: launcher(config["networks"][wildcards.network]["gpus"]),
    retries: 3
    message:
        "Training {wildcards.network}; progress: {log}"
    shell:
        "{params.launch} scripts/train.py exp.config_path={input.config} exp.threads={threads} > {log} 2>&1"
