"""How the weights of a graph are stored.

fp32: as they are. fp16: weights in half precision, which the runtime turns into float32 when it loads them; the
arithmetic and the speed are those of fp32, the file has half the size.
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
PRECISIONS = ("fp32", "fp16", "int8")


def store(path: Path, precision: str, about: dict[str, Any]) -> None:
    """Rewrite a graph in place with its weights in `precision` and with `about` in its metadata."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    _share(model.graph)
    if precision == "fp16":
        _half(model.graph)
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


def _half(graph: onnx.GraphProto) -> None:
    nodes = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < LEAST:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    graph.node.extend(nodes)
    ordered = nodes + list(graph.node)[: -len(nodes) or None]
    del graph.node[:]
    graph.node.extend(ordered)
