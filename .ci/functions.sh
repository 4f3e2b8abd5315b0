# shellcheck shell=bash
# What the scripts here share; to be sourced, after `set -euo pipefail`.

pythons=(3.11 3.12 3.13 3.14 3.15)
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export SDAX_NEWER_PYTHON=${SDAX_NEWER_PYTHON-$checkout/../shared/tools/newer-python}
unset SDAX_NO_EXTENSIONS SDAX_REQUIRE_EXTENSIONS PYTHONPATH VIRTUAL_ENV

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
mkdir "$scratch/tmp"
export TMPDIR=$scratch/tmp

heading() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }

# Copies what git tracks, and what it would: whatever else lies in the checkout has no say.
copy_checkout() {
  mkdir "$1"
  git -C "$checkout" ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [ -e "$checkout/$file" ]; then printf '%s\0' "$file"; fi
    done | tar -C "$checkout" --null -T - -cf - | tar -C "$1" -xf -
  git -C "$1" init -q
}

# Runs a command that runs tests; to run none of them is a failure as well.
passes_tests() {
  local status=0
  "$@" 2>&1 | tee "$scratch/log" || status=$?
  [ "$status" = 0 ] || return "$status"
  grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$scratch/log" || { echo "no test has run" >&2; return 1; }
}

# Prints the path of a Python of this version, if there is one.
find_python() {
  local candidate prefix
  for candidate in "$(command -v "python$1" || true)" \
    "$(pyenv versions --bare 2>/dev/null | grep -E "^${1//./\\.}([.-]|$)" | sort -V | tail -n 1)"; do
    [ -n "$candidate" ] || continue
    [ -x "$candidate" ] || { prefix=$(pyenv prefix "$candidate") && candidate=$prefix/bin/python; }
    if "$candidate" -c "import venv, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null
    then
      echo "$candidate"
      return
    fi
  done
  return 1
}
