#!/bin/sh
# A virtual environment without the lock: `oldest` installs the lower bounds of pyproject.toml, `newest` the newest
# versions that it allows. PyTorch is the locked one in both: its lower bound is the same today, and newer builds for the
# CPU are on PyTorch's own index only.
set -eu
mode=$1
case $mode in
    oldest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "error: $0 takes oldest or newest, not '$mode'." >&2; exit 1 ;;
esac
rm -rf "$VENV"
"$PYTHON" -m venv "$VENV"
VENV="$VENV" sh scripts/install_torch.sh "$(cat requirements/torch.txt)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep -o '^uv==[^ ]*' requirements/lock.txt)"
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --resolution "$resolution" --editable '.[test]' "$(cat requirements/torch.txt)"
"$VENV/bin/python" -m pip list --disable-pip-version-check
