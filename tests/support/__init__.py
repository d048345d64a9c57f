"""What tests and benchmarks share: small corpora and networks, trainings, a server, a browser.

`benchmarks/support` is a link to this folder, so that both can import it.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = (
    "hifigan",
    "hifipp_bwe1",
    "hifipp_bwe2",
    "hifipp_bwe4",
    "hifipp_denoise",
    "finally_stage1",
    "finally_stage2",
    "finally_stage3_pretrain",
    "finally_stage3",
)
