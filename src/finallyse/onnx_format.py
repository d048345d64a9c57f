"""What exported networks are called, and where their description is: in one entry of the graph's metadata, as JSON.

format "finallyse model", version 1, network, package_version, opset, precision, step, checkpoint_sha256
input_kind, input_rate, output_rate (Hz), alignment (samples, of which an input is a multiple), context (samples on
either side of what is kept of a window), grid (samples; windows begin at multiples of it), reach_back and reach_ahead
(samples before and after a moment that its output there depends on), repeats (of a stream, see `finallyse.Stream`)
level {"peak": as in checkpoints} or null, card (model card, Markdown)
ssl {file, sha256, dim, hop, sees (samples), level} of the WavLM beside it, or null
"""

SUFFIX, WAVLM_SUFFIX = ".onnx", ".wavlm.onnx"
KEY, FORMAT, WAVLM_FORMAT, FORMAT_VERSION = "finallyse", "finallyse model", "finallyse WavLM", 1
