"""Makes `import torchaudio` work beside a CPU-only torch.

The wheel from PyPI loads a CUDA extension at import. Nothing that we use (mel filterbanks, resampling) needs it, so
where that extension cannot be loaded a stand-in for `torchaudio._extension` says that it is absent, as torchaudio's
own builds without it do. Import this module before torchaudio, or take torchaudio from here:

    from finallyse.audio.torchaudio_shim import torchaudio
"""

import importlib.machinery
import sys
import types

import torch

if "torchaudio" not in sys.modules and not torch.cuda.is_available():
    extension = types.ModuleType("torchaudio._extension")
    extension.__spec__ = importlib.machinery.ModuleSpec("torchaudio._extension", loader=None, is_package=True)
    extension.__path__ = []
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    sys.modules["torchaudio._extension"] = extension

import torchaudio

__all__ = ["torchaudio"]
