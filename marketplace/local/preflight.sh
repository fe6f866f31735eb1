#!/bin/sh
# What must be there before the virtual environment: Python 3.11 or 3.12 with venv, and the engine's libgomp.
# Prints the Python to use. As root installs what is missing; otherwise prints the one line to run.
set -eu

python=
for candidate in python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or 3.12 is needed and was not found (looked for python3.12, python3.11, python3)." >&2
    echo "On Debian 12 or Ubuntu 24.04: sudo apt-get install python3" >&2
    exit 1
fi

missing=
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    missing="python$version-venv"
fi
# /sbin is not on every user's path.
if ! PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libgomp\.so\.1'; then
    missing="$missing libgomp1"
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "Installing$(printf ' %s' $missing) with apt-get ..." >&2
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
    else
        echo "Missing system packages. Run this line, then try again:" >&2
        echo "    sudo apt-get update && sudo apt-get install -y$(printf ' %s' $missing)" >&2
        exit 1
    fi
fi
echo "$python"
