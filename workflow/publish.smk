"""Copies the results of a run to S3 with Snakemake's storage plugin: a separate workflow.

    pip install snakemake-storage-plugin-s3
    snakemake --snakefile workflow/publish.smk --cores 4 --config to=s3://bucket/folder [results=results]

Checkpoints, metrics, figures and the report go to <to>/<path below results>; newer existing copies are kept.
Credentials are read from the same places as by AWS's own tools. Another provider: --storage-s3-endpoint-url https://...
"""

import re
import sys
from pathlib import Path

if not str(config.get("to", "")).startswith("s3://"):
    sys.exit("error: --config to=s3://bucket/folder is required: where the copies go")

RESULTS = str(config.get("results", "results")).rstrip("/")
TO = config["to"].rstrip("/")
PRODUCTS = sorted(
    str(path.relative_to(RESULTS))
    for pattern in (
        "*.ckpt",
        "metrics/*.csv",
        "configs/*.yaml",
        "figures/*",
        "report.html",
    )
    for path in Path(RESULTS).glob(pattern)
)
if not PRODUCTS:
    sys.exit(f"error: {RESULTS}: holds no checkpoint, metric or report to copy")


rule publish:
    default_target: True
    input:
        storage.s3(expand("{to}/{product}", to=TO, product=PRODUCTS)),
    localrule: True


rule copy_to_s3:
    input:
        f"{RESULTS}/{{product}}",
    output:
        storage.s3(f"{TO}/{{product}}"),
    log:
        f"{RESULTS}/logs/publish/{{product}}.log",
    wildcard_constraints:
        product="|".join(map(re.escape, PRODUCTS)),
    threads: 1
    message:
        "Copying {input} to {TO}"
    shell:
        "cp {input:q} {output:q} 2> {log:q}"
