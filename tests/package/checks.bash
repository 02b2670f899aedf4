# What the parts share: claims that are counted. To be sourced.

passed=0 failed=0

# says CLAIM COMMAND...: the claim holds if the command succeeds.
says() {
    local claim=$1 out
    shift
    if out=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "  ok      $claim"
    else
        failed=$((failed + 1))
        echo "  FAILED  $claim"
        sed 's/^/          /' <<<"${out:-$*}"
    fi
}

# within SECONDS COMMAND...: tries until it succeeds.
within() {
    local until=$((SECONDS + $1)) out
    shift
    until out=$("$@" 2>&1); do
        [ "$SECONDS" -lt "$until" ] || { echo "${out:-$*}"; return 1; }
        sleep 0.1
    done
}

equal() { [ "$1" = "$2" ] || { echo "\"$1\" is not \"$2\""; return 1; }; }
has() { grep -qF -- "$2" <<<"$1" || { echo "\"$2\" is not in: $1"; return 1; }; }
fails() { ! "$@"; }

# The closing line, and the exit code.
verdict() {
    echo "$1: $passed passed, $failed failed"
    [ "$failed" = 0 ]
}
