"""The networks are the published ones: layer names, shapes, norms, numbers of parameters and outputs.

Weights are drawn from the layers' names (`support.weights`). Inputs are 0.1 * N(0, 1) from a given seed.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.models import models_registry
from finallyse.models.norms import fold
from support.weights import fill, layers_of, norm_of

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "networks.json").read_text())
with (GOLDEN / "layers.tsv").open() as file:
    LAYERS = list(csv.DictReader(file, delimiter="\t"))


def inputs_of(description):
    """`wav[2,1,8192] seed2; ssl[2,1024,25] seed4` as tensors."""
    for shape, seed in re.findall(r"\[([\d,]+)\] seed(\d+)", description):
        values = np.random.default_rng(int(seed)).standard_normal([int(n) for n in shape.split(",")])
        yield torch.from_numpy((0.1 * values).astype(np.float32))


def named(output):
    if torch.is_tensor(output):
        return {"wav": output}
    logits, feature_maps = output
    maps = {f"fmap{i}.{j}": x for i, each in enumerate(feature_maps) for j, x in enumerate(each)}
    return {f"logits{i}": x for i, x in enumerate(logits)} | maps


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_network_is_the_published_one(case):
    model = models_registry[case["name"]](**case["args"]).eval()
    want = {row["layer"]: (json.loads(row["shape"]), row["norm"]) for row in LAYERS if row["model"] == case["key"]}
    assert {name: (list(layer.weight.shape), norm_of(layer)) for name, layer in layers_of(model).items()} == want
    assert sum(parameter.numel() for parameter in model.parameters()) == case["params_as_built"]
    fill(model, case["gain"], case["gain_last"])
    inputs = list(inputs_of(case["input"]))
    with torch.no_grad():
        outputs = named(model(*inputs))
    assert outputs.keys() == case["outputs"].keys()
    for name, golden in case["outputs"].items():
        assert list(outputs[name].shape) == golden["shape"], name
        flat = outputs[name].flatten().double().numpy()
        samples = flat[np.linspace(0, flat.size - 1, 32).astype(int)]
        np.testing.assert_allclose(samples, golden["samples"], atol=1e-3 * golden["std"], rtol=0, err_msg=name)
    # the norms fold into the weights: as many layers as carry one, the published size, the same output
    assert fold(model) == sum(norm != "none" for _, norm in want.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == case["params_folded"]
    with torch.no_grad():
        folded = named(model(*inputs))
    for name, output in outputs.items():
        torch.testing.assert_close(folded[name], output, atol=1e-5, rtol=1e-5)
