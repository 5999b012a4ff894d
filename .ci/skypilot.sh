#!/bin/sh
# Installs SkyPilot, which wants an older click than ours, into an environment of its own (build/skypilot), for the tests
# that ask it whether it takes our tasks; it is never started. Source it: RLHF_LOOP_TEST_SKYPILOT is that Python then.
# Where it cannot be installed it says why and succeeds: the tests then skip, saying so.
if [ -z "${RLHF_LOOP_TEST_SKYPILOT:-}" ]; then
    if python3 -m venv build/skypilot && build/skypilot/bin/pip install --disable-pip-version-check --quiet \
        'skypilot>=0.14,<0.15'; then
        RLHF_LOOP_TEST_SKYPILOT=$PWD/build/skypilot/bin/python
        export RLHF_LOOP_TEST_SKYPILOT
    else
        echo "no SkyPilot: it cannot be installed" >&2
    fi
fi
