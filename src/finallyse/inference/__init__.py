"""Enhancing recordings of any length with trained networks.

    from finallyse.inference.enhancer import Enhancer
    enhancer = Enhancer.from_checkpoint("results/hifipp_denoise.ckpt")
    clean = enhancer.enhance(wav, sample_rate)

`windows` cuts long signals, `renderer` runs a network over the windows, `engine` adds rates and levels and chooses what
runs the network: `enhancer` (PyTorch) or `onnx_enhancer` (ONNX Runtime). `files` reads and writes recordings, `stream`
enhances while the sound comes in, `command` and `live` are `finallyse enhance`, `pack` and `card` `finallyse pack`,
`validation` enhances the validation set of an experiment.
"""
