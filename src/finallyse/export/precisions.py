"""How the weights of a graph are stored.

fp32: as they are. fp16: in half precision, half the size. int8: with 8 bits and a scale per row, a quarter of the size;
those of the Fourier transforms and mel bands, which are the same in every network, in half precision.

The runtime turns them into float32 once, when it loads the graph, and the arithmetic and the speed are those of fp32.
To quantise the activations as well, dynamically or statically, costs the shipped network up to 13 dB and does not
make it faster: what its small layers save, turning numbers to and fro takes (benchmarks/export.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from finallyse.onnx_format import KEY

LEAST = 256  # elements; smaller tensors stay as they are
FIXED = ("analysis", "synthesis", "bands", "mel2linspec")  # in names of weights that no training has changed


def store(path: Path, precision: str, about: dict[str, Any]) -> None:
    """Rewrite a graph in place with its weights in `precision` and with `about` in its metadata."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    _share(model.graph)
    if precision != "fp32":
        _compress(model.graph, eight_bits=precision == "int8")
    onnx.helper.set_model_props(model, {KEY: json.dumps(about, ensure_ascii=False)})
    model.producer_name, model.producer_version = "finallyse", about["package_version"]
    onnx.save(model, path)


def _share(graph: onnx.GraphProto) -> None:
    """Keep one of each set of equal weights, for example of the transforms."""
    kept: dict[tuple, str] = {}
    same: dict[str, str] = {}
    for tensor in list(graph.initializer):
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if key in kept:
            same[tensor.name] = kept[key]
            graph.initializer.remove(tensor)
        else:
            kept[key] = tensor.name
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)


def _compress(graph: onnx.GraphProto, eight_bits: bool) -> None:
    """Replace weights by shorter ones and the operators that restore them, which the runtime evaluates at loading."""
    restored = []
    for tensor in list(graph.initializer):
        values, name = numpy_helper.to_array(tensor), tensor.name
        if tensor.data_type != TensorProto.FLOAT or values.size < LEAST:
            continue
        if eight_bits and values.ndim > 1 and not any(part in FIXED for part in name.split(".")):
            scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.short"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            restored.append(helper.make_node("Cast", [f"{name}.short"], [f"{name}.cast"], to=TensorProto.FLOAT))
            restored.append(helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]))
        else:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.short"))
            restored.append(helper.make_node("Cast", [f"{name}.short"], [name], to=TensorProto.FLOAT))
    nodes = restored + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
