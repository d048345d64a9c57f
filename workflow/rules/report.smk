"""The report: one self-contained page, and each network's charts for `snakemake --report`."""


report: "../report/workflow.rst"


rule report:
    input:
        checkpoints=expand(
            "{results}/{network}.ckpt", results=RESULTS, network=NETWORKS
        ),
        configs=expand(
            "{results}/configs/{network}.yaml", results=RESULTS, network=NETWORKS
        ),
        enhanced=expand(
            "{results}/enhanced/{network}", results=RESULTS, network=NETWORKS
        ),
        metrics=expand(
            "{results}/metrics/{network}.csv", results=RESULTS, network=NETWORKS
        ),
        summaries=expand(
            "{results}/metrics/{network}.summary.csv",
            results=RESULTS,
            network=NETWORKS,
        ),
        compared=expand(
            "{results}/metrics/{system}{suffix}",
            results=RESULTS,
            system=COMPARED,
            suffix=[".csv", ".summary.csv"],
        ),
        swept=swept("metrics/{network}.csv", "metrics/{network}.summary.csv"),
        augmentations=AUGMENTATIONS_PAGE,
        published=own("resources/paper/results.csv"),
        recipes=own("resources/paper/recipes.csv"),
    output:
        page=report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Report",
            labels={"what": "the whole run on one page"},
        ),
        figures=report(
            directory(f"{RESULTS}/figures"),
            patterns=["{network}.{figure}.svg"],
            caption="../report/figure.rst",
            category="Networks",
            subcategory="{network}",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        results=lambda wildcards, output: Path(output.page).parent,
        networks=NETWORKS,
        paper=lambda wildcards, input: Path(input.published).parent,
        augmentations=[
            word for page in AUGMENTATIONS_PAGE for word in ("--augmentations", page)
        ],
        compared=[
            word
            for system in COMPARED.values()
            for word in ("--compare", system.name, system.network, system.source)
        ]
        + [
            word
            for sweep in SWEEPS.values()
            for word in ("--sweep", sweep.name, sweep.base, json.dumps(sweep.grid))
        ],
    message:
        "Writing {output.page}"
    shell:
        anywhere(
            "python scripts/report.py --results {params.results:q} --networks {params.networks:q} --paper {params.paper:q}"
            " {params.augmentations:q} {params.compared:q} --output {output.page:q} --figures {output.figures:q} > {log:q} 2>&1"
        )


# The table is written regardless of the result: if the check failed in the same rule, Snakemake would delete it.
rule show_improvement:
    input:
        metrics=rules.report.input.metrics,
        summaries=rules.report.input.summaries,
    output:
        table=f"{RESULTS}/improvement.md",
    log:
        f"{RESULTS}/logs/show_improvement.log",
    benchmark:
        f"{RESULTS}/benchmarks/show_improvement.tsv"
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        results=lambda wildcards, output: Path(output.table).parent,
        networks=NETWORKS,
        goals=lambda wildcards: goal_options(),
    message:
        "Writing {output.table}"
    shell:
        anywhere(
            "python scripts/improvement.py --results {params.results:q} --networks {params.networks:q} {params.goals:q}"
            " --only-show > {log:q} 2>&1"
        )


rule learn:
    """Everything, and then the check of networks.<name>.improves and .reaches, which fails if something is not met."""
    input:
        checkpoints=rules.report.input.checkpoints,
        page=rules.report.output.page,
        table=rules.show_improvement.output.table,
    log:
        f"{RESULTS}/logs/learn.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/finallyse.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        results=lambda wildcards, input: Path(input.table).parent,
        networks=NETWORKS,
        goals=lambda wildcards: goal_options(),
    message:
        "Checking what is asked of each network"
    shell:
        anywhere(
            "python scripts/improvement.py --results {params.results:q} --networks {params.networks:q} {params.goals:q}"
            " 2>&1 | tee {log:q}"
        )
