#!/bin/sh
# A virtual environment with the locked packages and h2tune in it. Where there is no GPU, PyTorch's CPU build is taken:
# the default build brings several gigabytes of CUDA libraries along.
set -eu
known=$(sed -n 's/^# Pythons: //p' requirements/lock.txt)
found=$("$PYTHON" -c "import sys; print('%d.%d' % sys.version_info[:2])")
case " $known " in
    *" $found "*) ;;
    *)
        echo "error: requirements/lock.txt is for Python $known; '$PYTHON' is Python $found." >&2
        echo "Choose another Python with: make install PYTHON=python3.11" >&2
        exit 1
        ;;
esac

"$PYTHON" -m venv "$VENV"
pip="$VENV/bin/python -m pip install --quiet --disable-pip-version-check"
torch=$(cat requirements/torch.txt)

if ! "$VENV/bin/python" -c "import torch" 2>/dev/null; then
    if [ "$(uname -s)" != Linux ] || { command -v nvidia-smi && nvidia-smi; } >/dev/null 2>&1; then
        $pip "$torch"             # other systems have no CUDA build to avoid
    elif $pip "$torch+cpu" 2>/dev/null; then
        :                         # a CPU build is within pip's reach (a local index or folder)
    else
        $pip "$(grep -o '^uv==[^ ]*' requirements/lock.txt)"   # uv knows where PyTorch keeps its CPU builds
        "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --torch-backend cpu "$torch"
    fi
fi
# The lock is complete: nothing is resolved here, and a file that is not the locked one is refused by its hash.
$pip --no-deps --require-hashes --requirement requirements/lock.txt
$pip --no-deps --no-build-isolation --editable .
"$VENV/bin/python" -m pip check
"$VENV/bin/python" -c "import h2tune, torch; print('h2tune', h2tune.__version__, 'on torch', torch.__version__)"
