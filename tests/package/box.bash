# A freshly booted Debian with a real systemd as its first process, thrown away afterwards. To be sourced; root.
#
#   box_up           makes the base tree once (debootstrap, a minute, 250 MB) and boots an overlay of it in 2 s,
#                    with a network of its own that holds only lo
#   box COMMAND...   runs a command inside
#   box_net COMMAND  runs a program of this machine in the box's network
#   box_down         powers it off; also at the end of the script
#
# $BOX (default /var/tmp/forebay-box) keeps the base tree.

BOX=${BOX:-/var/tmp/forebay-box}
box_run= box_pid= box_leader=

box_base() {
    [ ! -e "$BOX/bookworm.made" ] || return 0
    mkdir -p "$BOX"
    # One run at a time makes it.
    exec 7>"$BOX/lock"
    flock 7
    [ ! -e "$BOX/bookworm.made" ] || { exec 7>&-; return 0; }
    local mirror
    mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -1)
    rm -rf "$BOX/bookworm"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,procps bookworm "$BOX/bookworm" "$mirror" \
        >"$BOX/debootstrap.log" 2>&1 || { tail -3 "$BOX/debootstrap.log" >&2; return 1; }
    touch "$BOX/bookworm.made"
    exec 7>&-
}

box_up() {
    box_base || return 1
    box_run=$(mktemp -d "$BOX/run.XXXXXX")
    mkdir "$box_run"/{up,work,root}
    mount -t overlay overlay -o "lowerdir=$BOX/bookworm,upperdir=$box_run/up,workdir=$box_run/work" "$box_run/root"
    systemd-nspawn -q -D "$box_run/root" -M "forebay-$$" --register=no --keep-unit --boot --console=pipe --private-network \
        </dev/null >"$box_run/console" 2>&1 &
    box_pid=$!
    local state=
    for _ in $(seq 600); do
        kill -0 "$box_pid" 2>/dev/null || { cat "$box_run/console" >&2; return 1; }
        box_leader=$(pgrep -P "$box_pid" | head -1) || true
        [ -z "$box_leader" ] || state=$(box systemctl is-system-running 2>/dev/null) || true
        case $state in running | degraded) return 0 ;; esac
        sleep 0.1
    done
    echo "the box does not come up: $state" >&2
    return 1
}

box() {
    nsenter -t "$box_leader" -m -u -i -n -p -C env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb \
        DEBIAN_FRONTEND=noninteractive "$@"
}

box_net() { nsenter -t "$box_leader" -n "$@"; }

# The files of the box, seen from here.
box_root() { echo "$box_run/root"; }

box_down() {
    [ -n "$box_run" ] || return 0
    if [ -n "$box_pid" ] && kill -0 "$box_pid" 2>/dev/null; then
        kill -RTMIN+4 "${box_leader:-$box_pid}" 2>/dev/null || true # power off
        for _ in $(seq 100); do kill -0 "$box_pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$box_pid" 2>/dev/null || true
    fi
    wait "$box_pid" 2>/dev/null || true
    mountpoint -q "$box_run/root" && umount "$box_run/root"
    rm -rf "$box_run"
    box_run= box_pid= box_leader=
}
