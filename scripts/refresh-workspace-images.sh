#!/bin/sh
# `refit refresh` under the name and with the flags of the platform's original script.
#
# Knows nothing but flags. What is pulled and recreated, and how it ends, is Refit's: docs/local-development.md.
set -eu

usage() {
    cat <<'USAGE'
Pull the workspace images and recreate the running ws-* containers that are behind.

Usage: scripts/refresh-workspace-images.sh [--runtime RUNTIME]... [--no-recreate] [-- OPTION...]

  --runtime RUNTIME  only this runtime; may be repeated
  --no-recreate      only pull; recreate no container
  -h, --help         this
  -- OPTION...       handed to `refit refresh`, whose --help lists them: -- --json

The program is what REFIT names, otherwise `refit` on the PATH. Logins are those of `docker login`.
Exit status: 0 done, 1 some of it failed, 2 could not run.
USAGE
}

refuse() {
    printf 'error: %s\n\nhint: %s\n' "$1" "${2:-"--help" lists the flags}" >&2
    exit 2
}

# Each argument is taken from the front, and what is handed on is put at the end.
left=$#
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    left=$((left - 1))
    case $argument in
    --runtime)
        [ "$left" -gt 0 ] || refuse '--runtime needs the name of a runtime'
        runtime=$1
        shift
        left=$((left - 1))
        ;;
    --runtime=*)
        runtime=${argument#--runtime=}
        ;;
    --no-recreate)
        set -- "$@" --no-recreate
        continue
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        while [ "$left" -gt 0 ]; do
            argument=$1
            shift
            left=$((left - 1))
            set -- "$@" "$argument"
        done
        continue
        ;;
    *)
        refuse "unknown argument: $argument"
        ;;
    esac
    case $runtime in
    '' | -*) refuse "--runtime needs the name of a runtime, and not \`$runtime\`" ;;
    esac
    set -- "$@" "--runtime=$runtime"
done

refit=${REFIT:-refit}
command -v "$refit" >/dev/null 2>&1 ||
    refuse "there is no program \`$refit\`" 'REFIT=/path/to/refit names it; the README says how it is built'
exec "$refit" refresh "$@"
