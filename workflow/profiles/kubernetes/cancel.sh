#!/bin/sh
# Snakemake takes the command to cancel jobs as one word: this is it.
exec python "$(dirname "$0")/jobs.py" cancel "$@"
