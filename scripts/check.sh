#!/usr/bin/env bash
# Checks before a commit: formatter, linter, types and words.
RETORT_REQUIREMENTS=extra source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m scripts.dev.check_words
