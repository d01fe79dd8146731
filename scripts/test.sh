#!/usr/bin/env bash
# Set up and run the tests: bash scripts/test.sh [pytest arguments]. Under 10 minutes on two cores.
RETORT_REQUIREMENTS=extra source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# one thread a worker: the nets are tiny, and threads that wait for each other cost more than they give
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -m "not slow" -n 2 --dist worksteal --strict-skips --durations=10 "$@"
