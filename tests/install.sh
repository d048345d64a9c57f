#!/usr/bin/env bash
# The package as its users get it. Builds wheel and sdist, checks them, and installs the wheel in empty environments
# outside the repository: with what `pip install` brings, and without PyTorch, for ONNX Runtime. Each enhances a recording
# with the network inside. A few minutes, and 1 GB in a temporary folder.
#
#     bash tests/install.sh [PYTHON]      PYTHON: that makes the environments (default: python3)
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python=$(realpath --no-symlinks "$(command -v "${1:-python3}")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install() { "$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}"; }

"$python" -m venv "$work/build"
install "$work/build" build==1.6.1 twine==7.0.0
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$work/build/bin/twine" check --strict "$work"/dist/*
wheel=$(echo "$work"/dist/*.whl)
cp "$root/resources/demo/example/noisy.flac" "$work/talk.flac"
cd "$work"

# The pinned torch first: where there is a folder with a CPU build of it, pip takes that.
"$python" -m venv "$work/light"
install "$work/light" "$(grep -E '^torch==' "$root/requirements.txt")"
install "$work/light" "$wheel"
"$work/light/bin/pip" check
"$work/light/bin/finallyse" --version
"$work/light/bin/finallyse" enhance talk.flac torch/
for package in snakemake wandb transformers omegaconf onnxruntime; do
    if "$work/light/bin/python" -c "import $package" 2>/dev/null; then echo "error: $package was installed"; exit 1; fi
done
# Parts that need more say what.
if "$work/light/bin/finallyse" compare small small --data . 2> needs.txt; then exit 1; fi
grep -q "pip install 'finallyse\[metrics\]'" needs.txt || { cat needs.txt; exit 1; }

"$python" -m venv "$work/onnx"
install "$work/onnx" numpy soundfile soxr 'av>=17.0.1,<17.1' onnxruntime
install "$work/onnx" --no-deps "$wheel"
"$work/onnx/bin/finallyse" enhance talk.flac onnx/
"$work/onnx/bin/finallyse" page page/

"$work/light/bin/python" - <<'END'
import numpy as np, soundfile as sf
(a, rate), (b, _) = (sf.read(f"{engine}/talk.wav") for engine in ("torch", "onnx"))
db = 10 * np.log10(np.mean((a - b) ** 2) / np.mean(a**2))
print(f"PyTorch and ONNX Runtime differ by {db:.1f} dB")
assert rate == 16000 and db < -60
END
echo "PASSED tests/install.sh"
