"""Enhancing recordings of any length with trained checkpoints.

    from finallyse.inference.enhancer import Enhancer
    enhancer = Enhancer.from_checkpoint("results/hifipp_denoise.ckpt")
    clean = enhancer.enhance(wav, sample_rate)

`windows` cuts long signals, `enhancer` runs networks over the windows, `files` reads and writes recordings, `stream`
enhances while the sound comes in, `command` and `live` are `finallyse enhance`, `pack` and `card` `finallyse pack`,
`validation` enhances the validation set of an experiment.
"""
