#!/bin/sh
# Every linter, all of them run, non-zero if one complains. Argument: the bin folder to take them from.
bin=${1:?give the bin folder of the environment}
cd "$(dirname "$0")/.." || exit 1
status=0
run() {
    echo "== $*"
    "$@" || status=1
}
run "$bin/ruff" check .
run "$bin/ruff" format --check .
run "$bin/clang-format" --dry-run --Werror $(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
# The wheel is what users import, and brainfast.export lies inside it, so types and floors are
# checked there and not in the source tree.
(
    settings=$PWD/pyproject.toml
    cd / && run "$bin/lint-imports" --no-cache --config "$settings"
    cd / && run "$bin/mypy" --config-file "$settings" --cache-dir "${TMPDIR:-/tmp}/brainfast-mypy" -p brainfast
    exit $status
) || status=1
exit $status
