"""Trained networks as ONNX graphs, which run without PyTorch: `finallyse export`.

`transforms` has the Fourier transforms in operators of ONNX, `graphs` turns a generator into a graph, `precisions`
stores its weights in fewer bits, `command` exports, checks and writes.
"""
