"""Write a complete experiment, given as JSON, to a YAML file that scripts/train.py reads."""

import argparse
import json
from pathlib import Path

from omegaconf import OmegaConf

from finallyse import atomic
from finallyse.errors import one_line_errors

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("experiment", help="the experiment's options as JSON")
parser.add_argument("output", type=Path, help="YAML file to write")
arguments = parser.parse_args()

text = OmegaConf.to_yaml(OmegaConf.create(json.loads(arguments.experiment)))
with one_line_errors():
    atomic.write_bytes(
        arguments.output,
        b"# Complete and resolved: what this network was trained with. Written by the workflow.\n",
        text.encode(),
    )
