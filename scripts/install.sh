#!/bin/sh
# A virtual environment with the package in it. Where there is no GPU, PyTorch's CPU build is taken: the default
# build brings several gigabytes of CUDA libraries along.
set -eu
"$PYTHON" -m venv "$VENV"
pip="$VENV/bin/python -m pip install --quiet --disable-pip-version-check"

torch_is_there() { "$VENV/bin/python" -c "import torch" 2>/dev/null; }

if ! torch_is_there; then
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
        $pip "torch==$TORCH"
    elif [ "$(uname -s)" != Linux ]; then
        $pip "torch==$TORCH"      # other systems have no CUDA build to avoid
    elif $pip "torch==$TORCH+cpu" 2>/dev/null; then
        :                         # a CPU build is within pip's reach (a local index or folder)
    else
        $pip uv                   # uv knows where PyTorch keeps its CPU builds
        "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --torch-backend cpu "torch==$TORCH"
    fi
fi
$pip --editable ".[dev]"
"$VENV/bin/python" -c "import h2tune, torch; print('h2tune', h2tune.__version__, 'on torch', torch.__version__)"
