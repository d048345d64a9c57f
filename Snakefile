"""Trains HiFi-GAN, HiFi++ and FINALLY, measures them and writes a report.

snakemake --cores 8 results/finally_stage3.ckpt        # the paper
snakemake --cores 8 finally_stage3                     # the same, by the network's name
snakemake --cores 2 --configfile config/demo.yaml      # everything on the embedded corpus, small networks
snakemake --cores 8 data                               # only fetch and prepare the corpora
snakemake --cores 8 --directory DIR                    # everything, in another folder
snakemake --cores 2 --configfile config/learn.yaml -- learn      # the same, and check that each beats its input
"""


include: "workflow/Snakefile"


# An included file's own default target does not count.
workflow.default_target = rules.all.rule.name
