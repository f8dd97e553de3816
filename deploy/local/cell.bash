# shellcheck shell=bash
#
# A cell on this machine, for `demo` and `up`: a registry with two images, two containerds of different generations, and
# prewarm on them: one process that is broker, dispatcher and the first node, one more that is the second node.
#
# Everything a cell has is in one temporary folder, $CELL: its data, its sockets, a log of each process and a list of
# them. .demo/NAME.dir in the source folder says where that is, so that `down` finds what is left over.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly REPOSITORY
PARTS=$("$REPOSITORY/deploy/local/parts" --dir)
readonly PARTS
PREWARM=${CARGO_TARGET_DIR:-$REPOSITORY/target}/debug/prewarm
PUSH_IMAGES=${CARGO_TARGET_DIR:-$REPOSITORY/target}/debug/examples/push-images
readonly PREWARM PUSH_IMAGES
# The two generations of containerd that the two nodes have.
readonly NODE_1=containerd-1.7 NODE_2=containerd-2.1
readonly START_LIMIT=30 STOP_LIMIT=15

if [ -t 2 ]; then readonly BOLD=$'\e[1m' DIM=$'\e[2m' PLAIN=$'\e[0m'; else readonly BOLD='' DIM='' PLAIN=''; fi
step() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
# Shows a command as a user would type it.
show() { printf '%s    $ %s%s\n' "$DIM" "$*" "$PLAIN" >&2; }

# ---- The folder -----------------------------------------------------------------------------------------------------

# A new folder for the cell called $1: short, as sockets go there, and where overlayfs can have its layers.
new_cell() {
    local base
    for base in "${PREWARM_TEST_DIR:-}" "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm ''; do
        [ -d "$base" ] && [ "$(stat -f -c %T "$base")" != overlayfs ] && break
    done
    [ -n "$base" ] || die "no usual temporary folder can hold overlayfs layers; set PREWARM_TEST_DIR to a short path on ext4, xfs or tmpfs"
    CELL=$(mktemp -d "$base/pw-$1.XXXXXX")
    mkdir -p "$CELL"/{logs,certs.d} "$REPOSITORY/.demo"
    printf '%s\n' "$CELL" >"$REPOSITORY/.demo/$1.dir"
}

# Ends the cell in folder $1, if any, and removes the folder. Safe to call twice.
end_cell() {
    local cell=$1 pid name point
    case "$cell" in */pw-*) ;; *) return 0 ;; esac
    [ ! -e "$cell/processes" ] || tac "$cell/processes" | while read -r pid name; do stop_process "$cell" "$pid"; done
    awk '{ print $5 }' /proc/self/mountinfo | { grep "^$cell/" || true; } | sort -r | while read -r point; do
        umount --lazy "$point" || true
    done
    rm -rf "$cell"
}

# ---- Processes ------------------------------------------------------------------------------------------------------

# Runs the rest of the line as process $1, apart from this terminal.
start_process() {
    local name=$1
    shift
    (cd "$CELL" && exec setsid "$@" >>"$CELL/logs/$name" 2>&1 </dev/null 9>&-) &
    printf '%s %s\n' "$!" "$name" >>"$CELL/processes"
}

# Whether process number $2 of cell $1 runs; one with that number and another working folder is somebody else's.
runs() { [ "$(readlink "/proc/$2/cwd" 2>/dev/null)" = "$1" ]; }
pid_of() { awk -v name="$1" '$2 == name { print $1 }' "$CELL/processes"; }

stop_process() {
    local cell=$1 pid=$2 deadline=$((SECONDS + STOP_LIMIT))
    if runs "$cell" "$pid"; then kill -TERM "$pid" 2>/dev/null || true; fi
    while runs "$cell" "$pid" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.05; done
    if runs "$cell" "$pid"; then kill -KILL "$pid" 2>/dev/null || true; fi
}

# Waits until the command (from $3 on) succeeds; $1 is the process that makes it so, $2 says what is waited for.
wait_for() {
    local name=$1 what=$2 deadline=$((SECONDS + START_LIMIT))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! runs "$CELL" "$(pid_of "$name")" || [ "$SECONDS" -ge "$deadline" ]; then
            tail -n 20 "$CELL/logs/$name" | sed 's/^/    /' >&2
            die "waited in vain for $what (above: the end of the log of $name)"
        fi
        sleep 0.05
    done
}

free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM % 12000))
        listens "$port" || break
    done
    printf '%s\n' "$port"
}
listens() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ---- What a cell has ------------------------------------------------------------------------------------------------

# Fetches and builds what is needed, before anything is started.
prepare() {
    [ "$(id -u)" = 0 ] || die "containerd needs root; run this as root, or look at the program alone with: prewarm up --runtime simulated"
    step "Getting ready: servers in $PARTS, and the program"
    "$REPOSITORY/deploy/local/parts" nats-2.15 "$NODE_1" "$NODE_2" registry-2.8 runc busybox
    "${CARGO:-cargo}" build --locked --quiet --manifest-path "$REPOSITORY/Cargo.toml" --bin prewarm --example push-images
    # containerd finds runc on it, and `prewarm up` its nats-server.
    PATH=$PARTS/nats-2.15/bin:$PARTS/runc/bin:$PATH
    # Settings of the user's own fleet do not belong here.
    local name
    for name in NATS_URL ${!PREWARM_*}; do
        case "$name" in PREWARM | PREWARM_PARTS* | PREWARM_TEST_DIR) ;; *) unset "$name" ;; esac
    done
}

start_registry() {
    local port
    port=$(free_port)
    REGISTRY=127.0.0.1:$port
    cat >"$CELL/registry.yml" <<CONF
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $CELL/registry}}
http: {addr: "$REGISTRY"}
CONF
    start_process registry "$PARTS/registry-2.8/bin/docker-registry" serve "$CELL/registry.yml"
    wait_for registry "the registry" listens "$port"
    # Every node may speak plain HTTP with it.
    mkdir -p "$CELL/certs.d/$REGISTRY"
    printf 'server = "http://%s"\n' "$REGISTRY" >"$CELL/certs.d/$REGISTRY/hosts.toml"
    "$PUSH_IMAGES" --registry "$REGISTRY" demo/busybox:1.0=busybox demo/app:1.0=busybox+16x12MiB | sed 's/^/    /' >&2
}

socket_of() { printf '%s/%s.sock' "$CELL" "$1"; }
ctr_of() { local part=$1; shift; "$PARTS/$part/bin/ctr" --address "$(socket_of "$part")" --namespace k8s.io "$@"; }

# containerd of part $1, with a root, a state folder and a socket of its own.
start_containerd() {
    local part=$1 home=$CELL/$1 format=2 images=io.containerd.grpc.v1.cri
    if [ "$part" = containerd-2.1 ]; then format=3 images=io.containerd.cri.v1.images; fi
    mkdir -p "$home"
    cat >"$home/config.toml" <<CONF
version = $format
root = "$home/root"
state = "$home/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "$(socket_of "$part")"
[plugins."$images".registry]
config_path = "$CELL/certs.d"
[plugins."io.containerd.internal.v1.opt"]
path = "$home/opt"
CONF
    start_process "$part" "$PARTS/$part/bin/containerd" --config "$home/config.toml"
    wait_for "$part" "$part" ctr_of "$part" version
}

# The whole cell; leaves NATS_URL set for the commands that follow.
start_cell() {
    step "Starting a registry with two images"
    start_registry
    step "Starting two containerds: $NODE_1 and $NODE_2"
    start_containerd "$NODE_1"
    start_containerd "$NODE_2"

    step "Starting prewarm: broker, dispatcher and node-1 in one process, node-2 in another"
    start_node up node-1 "$NODE_1" --data-dir "$CELL/data"
    wait_for up "the address of the broker" test -s "$CELL/data/nats.url"
    NATS_URL=$(cat "$CELL/data/nats.url")
    export NATS_URL
    start_node worker node-2 "$NODE_2" --nats-url "$NATS_URL"
    wait_for up "node-1 to join" has_node node-1
    wait_for worker "node-2 to join" has_node node-2
    note "broker at $NATS_URL"
}

# Role $1 as node $2 on containerd $3, with the rest as arguments.
start_node() {
    local role=$1 node=$2 part=$3
    shift 3
    # A laptop's disk is often fuller than a node's may be: the demo needs a few hundred megabytes and no reserve.
    start_process "$role" "$PREWARM" "$role" --node "$node" --labels "pool=demo" --min-free-disk 0 \
        --containerd-address "$(socket_of "$part")" --registry-config-dir "$CELL/certs.d" \
        --metrics-listen "127.0.0.1:$(free_port)" "$@"
}
has_node() { "$PREWARM" get node "$1"; }
