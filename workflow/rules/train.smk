"""Training: writes each network's complete experiment and what of it defines the result, then its checkpoint."""


rule write_experiment:
    output:
        config=f"{RESULTS}/configs/{{network}}.yaml",
    log:
        f"{RESULTS}/logs/write_experiment/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_experiment/{{network}}.tsv"
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    params:
        experiment=lambda wildcards: json.dumps(EXPERIMENTS[wildcards.network]),
    message:
        "Writing the complete experiment of {wildcards.network}"
    shell:
        anywhere(
            "python scripts/write_experiment.py {params.experiment:q} {output.config:q} 2> {log:q}"
        )


# Changes only with what leads to another result, unlike the experiment, which also says how to log and to validate.
rule write_recipe:
    output:
        recipe=f"{RESULTS}/configs/{{network}}.recipe.json",
    log:
        f"{RESULTS}/logs/write_recipe/{{network}}.log",
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    params:
        recipe=training_recipe,
    message:
        "Writing what defines {wildcards.network}"
    shell:
        "printf '%s\\n' {params.recipe:q} > {output.recipe:q} 2> {log:q}"


rule train_network:
    input:
        recipe=f"{RESULTS}/configs/{{network}}.recipe.json",
        config=ancient(f"{RESULTS}/configs/{{network}}.yaml"),
        data=training_manifests,
        weights=training_weights,
        start=initial_checkpoint,
        plugins=training_plugins,
    output:
        ckpt=f"{RESULTS}/{{network}}.ckpt",
    log:
        f"{RESULTS}/logs/train_network/{{network}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_network/{{network}}.tsv"
    # The job must not retry inside its expired allocation: Snakemake's main process submits it again.
    retries: 3 if workflow.is_main_process else 0
    conda:
        "../../envs/finallyse.yaml"
    threads: lambda wildcards: config["networks"][wildcards.network]["threads"]
    resources:
        gpu=lambda wildcards: config["networks"][wildcards.network]["gpus"],
        gpu_jobs=1,
        nodes=1,
        mem_mb=lambda wildcards: int(
            1000 * config["networks"][wildcards.network]["mem_gb"]
        ),
        runtime=lambda wildcards: int(
            60 * config["networks"][wildcards.network]["hours"]
        ),
        # minutes after which it saves, stops and is restarted; a profile sets it below the walltime
        stop_after="null",
    message:
        "Training {wildcards.network}; progress: {log}"
    # Snakemake deletes the log before each attempt: a second name keeps that of earlier ones.
    # `exec`: no shell between Snakemake and the training, since SLURM's SIGTERM would end it before the training saves.
    shell:
        anywhere(
            'log={log:q}; kept=${{log%.log}}; mkdir -p "$kept"; : > "$log"; '
            'ln "$log" "$kept/$(date -u +%Y-%m-%dT%H-%M-%S)-$$.log" || true; '
            "launch=python; [ {resources.gpu} -le 1 ] || launch='torchrun --standalone --nproc-per-node={resources.gpu}'; "
            "exec $launch scripts/train.py exp.config_path={input.config:q} train.stop_after={resources.stop_after} "
            "exp.threads=$(( ({threads} + {resources.gpu} - 1) / {resources.gpu} )) >> {log:q} 2>&1"
        )
