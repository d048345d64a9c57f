"""Every trainable parameter of every generator gets a finite, non-zero gradient from its recipe's losses; nothing
frozen gets any. The recipes are those of config/experiments; widths are small."""

import pytest
import torch

from finallyse.config import read_yaml
from finallyse.losses import losses_registry
from finallyse.models import models_registry
from finallyse.models.wavlm import WavLM
from support import NETWORKS
from support.networks import SMALL, UPSAMPLING, make_wavlm

RECIPES = [network for network in NETWORKS if network not in ("hifipp_bwe2", "hifipp_bwe4")]  # as hifipp_bwe1


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm") / "small"
    make_wavlm(folder)
    return WavLM(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients(root, wavlm, recipe):
    experiment = read_yaml(root / "config" / "experiments" / f"{recipe}.yaml")
    torch.manual_seed(0)
    name = experiment["generator"]["name"]
    head = UPSAMPLING if experiment["generator"].get("args", {}).get("use_upsamplewaveunet") else {}
    generator = models_registry[name](**(SMALL[name] | head))
    train_only = experiment["generator"].get("train_only", [])
    frozen = [] if name != "finally_gen" or not head else ["conv_post"]
    for key, parameter in generator.named_parameters():
        if (train_only and not key.startswith(tuple(train_only))) or key.startswith(tuple(frozen)):
            parameter.requires_grad_(False)
    discriminators = []
    for part, settings in experiment.get("discriminators", {}).get("parts", {}).items():
        scale = {"same_scale": True} if (settings.get("args") or {}).get("same_scale") else {}
        discriminators.append(models_registry[part](**(SMALL[part] | scale)).requires_grad_(False))

    wav_in = 0.1 * torch.randn(2, 1, 8192)
    inputs = {
        "mel": lambda: (torch.randn(2, 80, 32) - 5,),
        "wav": lambda: (wav_in,),
        "wav+ssl": lambda: (wav_in, wavlm.last_hidden_state(wav_in)),
    }[generator.input_kind]()
    wav_hat = generator(*inputs)
    wav = 0.1 * torch.randn_like(wav_hat)
    given = {"wav": wav, "wav_hat": wav_hat, "sample_rate": generator.output_rate, "wavlm": wavlm}
    for which, audio in (("real", wav), ("fake", wav_hat)):
        outputs = [discriminator(audio) for discriminator in discriminators]
        given[f"logits_{which}"] = [logits for each, _ in outputs for logits in each]
        given[f"fmaps_{which}"] = [maps for _, each in outputs for maps in each]
    total = 0.0
    for loss_name, settings in experiment["losses"]["generator"].items():
        if loss_name == "utmos":  # its gradient is tested with its network: tests/test_utmos.py
            continue
        loss = losses_registry[loss_name](**settings.get("args", {}))
        total = total + settings["weight"] * loss(**{need: given[need] for need in loss.needs})
    total.backward()

    trainable = {key: p for key, p in generator.named_parameters() if p.requires_grad}
    assert trainable
    for key, parameter in trainable.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    for network in (generator, wavlm, *discriminators):
        assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    if train_only:
        assert all(key.startswith(tuple(train_only)) for key in trainable)
