#!/usr/bin/env bash
# mosquitto_pub and mosquitto_sub against a gateway.
set -uo pipefail

USER_NAME=press PASSWORD=right CERTIFIED=gw-01 MANY=1000 LARGE=200000
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

topic() { echo "foreign/$1/x"; }
event_topic() { echo "test/plant/foreign.event/v1/$1"; }
# payload MACHINE NUMBER
payload() { printf '{"id":"%s-%s-%s","n":%s}\n' "$1" "$2" "$(date +%N)" "$2"; }
# payloads MACHINE COUNT: one a line
payloads() {
    local n
    for ((n = 0; n < $2; n++)); do printf '{"id":"%s-%s-%s","n":%s}\n' "$1" "$n" "$EPOCHREALTIME" "$n"; done
}
# numbers FILE: what events in it were published with
numbers() { sed -n 's/.*"n":\([0-9]*\).*/\1/p' "$1" | tr '\n' ' '; }

peer() { # peer pub|sub ARGUMENTS: in time, or not at all
    local kind=$1
    shift
    timeout "$patience" "mosquitto_$kind" -V "$version" -h localhost "$@" 2>"$folder/error" && return
    echo "mosquitto_$kind $* failed: $(tr '\n' ' ' <"$folder/error")" >"$folder/reason"
    return 1
}
fail() { echo "$*" >"$folder/reason"; return 1; }
plain=(-p "$FOREIGN_PORT")

check_qos() { payloads "$who" 20 | peer pub "${plain[@]}" -i "$who" -q "$1" -t "$(topic "$who")" -l; }
check_qos0() { check_qos 0; }
check_qos1() { check_qos 1; }
check_qos2() { check_qos 2; }
check_large() {
    printf '{"id":"%s-large","n":1,"fill":"%s"}' "$who" "$(head -c "$LARGE" /dev/zero | tr '\0' x)" >"$folder/large"
    peer pub "${plain[@]}" -i "$who" -q 1 -t "$(topic "$who")" -f "$folder/large"
}
check_many() { payloads "$who" $MANY | peer pub "${plain[@]}" -i "$who" -q 1 -t "$(topic "$who")" -l; }
# Waits until a mosquitto_sub -d has its SUBACK.
await_subscribed() {
    for ((i = 0; i < patience * 20; i++)); do
        grep -q 'Subscribed' "$1" && { grep -q 'Subscribed.*: 1' "$1" || fail "SUBACK: $(cat "$1")"; return; }
        kill -0 "$2" 2>/dev/null || break
        sleep 0.05
    done
    fail "no SUBACK: $(cat "$1")"
}
# watch COUNT: in the background, into $folder/heard-$who; its process is $watcher
watch() {
    timeout "$patience" stdbuf -oL mosquitto_sub -V "$version" -h localhost "${plain[@]}" -i "$who-sub" -q 1 -d -C "$1" \
        -t "$(event_topic "$who")" >"$folder/heard-$who" 2>&1 &
    watcher=$!
    await_subscribed "$folder/heard-$who" "$watcher"
}
expect() { [ "$(numbers "$1")" = "$2 " ] || fail "heard [$(numbers "$1")], not [$2]"; }
check_subscribe() {
    watch 50 || return
    payloads "$who" 50 | peer pub "${plain[@]}" -i "$who" -q 1 -t "$(topic "$who")" -l || return
    wait "$watcher" || fail "heard [$(numbers "$folder/heard-$who")], and no more" || return
    expect "$folder/heard-$who" "$(seq -s ' ' 0 49)"
}
check_session() {
    local kept=(-c -i "$who" -q 1 -t "$(event_topic "$who")")
    [ "$version" = mqttv311 ] || kept+=(-x 600)
    peer sub "${plain[@]}" "${kept[@]}" -E || return
    payloads "$who" 10 | peer pub "${plain[@]}" -i "$who-other" -q 1 -t "$(topic "$who")" -l || return
    peer sub "${plain[@]}" "${kept[@]}" -C 10 >"$folder/owed" || return
    expect "$folder/owed" "$(seq -s ' ' 0 9)"
}
check_will() {
    watch 1 || return
    # With a goodbye there is no will.
    local will=(--will-topic "$(topic "$who")" --will-qos 1)
    payload "$who" 1 >"$folder/unused"
    peer pub "${plain[@]}" -i "$who-polite" "${will[@]}" --will-payload "$(payload "$who" 98)" -q 1 -t "foreign/other/x" \
        -m "$(payload other 1)" || return
    mkfifo "$folder/pipe-$version"
    stdbuf -oL mosquitto_pub -V "$version" -h localhost "${plain[@]}" -i "$who-mortal" "${will[@]}" \
        --will-payload "$(payload "$who" 99)" -q 1 -t "foreign/other/x" -d -l <"$folder/pipe-$version" >"$folder/mortal" 2>&1 &
    local mortal=$!
    exec 7>"$folder/pipe-$version"
    payload other 2 >&7
    for ((i = 0; i < patience * 20; i++)); do
        grep -q 'received PUBACK' "$folder/mortal" && break
        sleep 0.05
    done
    kill -KILL "$mortal"
    wait "$mortal" 2>/dev/null
    exec 7>&-
    wait "$watcher" || fail "no will came" || return
    expect "$folder/heard-$who" 99
}
check_login() {
    payloads "$USER_NAME" 5 | peer pub -p "$FOREIGN_LOGIN_PORT" -i "$who" -u "$USER_NAME" -P "$PASSWORD" -q 1 \
        -t "$(topic "$USER_NAME")" -l
}
check_tls() {
    payloads "$CERTIFIED" 5 | peer pub -p "$FOREIGN_TLS_PORT" -i "$who" --cafile "$FOREIGN_CA" --cert "$FOREIGN_CERT" \
        --key "$FOREIGN_KEY" -q 1 -t "$(topic "$CERTIFIED")" -l
}

for number in 3 5; do
    version=mqttv311
    [ $number = 3 ] || version=mqttv5
    for kind in qos0 qos1 qos2 large many subscribe session will login tls; do
        name=$kind-$number who=mosquitto-$kind-$number patience=20
        case " ${FOREIGN_AWAITED:-} " in *" $name "*) patience=1 ;; esac
        echo "it failed" >"$folder/reason"
        if "check_$kind"; then
            echo "ok $name"
        else
            failed=1
            echo "FAIL $name $(tr '\n' ' ' <"$folder/reason")"
        fi
    done
done
exit $failed
