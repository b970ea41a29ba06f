#!/bin/bash
# run.sh [ARGS OF NEXTEST]   All tests of failback: installs what they use, builds the command as it
# ships, runs unit tests, property tests, replay of the fuzz corpora, scenarios, doc tests.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/setup.sh
PATH=$PATH:/usr/sbin:/sbin

# The scenarios run the release build.
cargo build --release -p failback-cli
cargo nextest run --workspace "$@"
cargo test --doc --workspace
