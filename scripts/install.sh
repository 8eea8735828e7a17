#!/bin/sh
# A virtual environment with the locked packages and h2tune in it.
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
VENV="$VENV" sh scripts/install_torch.sh "$(cat requirements/torch.txt)"
# The lock is complete: nothing is resolved here, and a file that is not the locked one is refused by its hash.
$pip --no-deps --require-hashes --requirement requirements/lock.txt
$pip --no-deps --no-build-isolation --editable .
"$VENV/bin/python" -m pip check
"$VENV/bin/python" -c "import h2tune, torch; print('h2tune', h2tune.__version__, 'on torch', torch.__version__)"
