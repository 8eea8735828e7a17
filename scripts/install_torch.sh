#!/bin/sh
# Install the PyTorch that is named, `torch==2.13.0` or just `torch`, in $VENV. Where there is no GPU, the CPU build is
# taken: the default build brings several gigabytes of CUDA libraries along.
set -eu
torch=$1
pip="$VENV/bin/python -m pip install --quiet --disable-pip-version-check"

if "$VENV/bin/python" -c "import torch" 2>/dev/null; then
    :                             # keep the one that is there
elif [ "$(uname -s)" != Linux ] || { command -v nvidia-smi && nvidia-smi; } >/dev/null 2>&1; then
    $pip "$torch"                 # other systems have no CUDA build to avoid
elif [ "$torch" != "${torch#*==}" ] && $pip "$torch+cpu" 2>/dev/null; then
    :                             # a CPU build is within pip's reach (a local index or folder)
else
    $pip "$(grep -o '^uv==[^ ]*' requirements/lock.txt)"   # uv knows where PyTorch keeps its CPU builds
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --torch-backend cpu "$torch"
fi
