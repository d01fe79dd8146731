#!/usr/bin/env bash
# Formatter, linter, types and words, as they must be before a commit.
RETORT_REQUIREMENTS=extra source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m scripts.dev.check_words
