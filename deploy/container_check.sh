#!/usr/bin/env bash
# Builds the image, starts the service in it as deploy/compose.yaml does (not root, read-only root file system, no
# capabilities), sorts a simulated session over HTTP, scores the result, stops the service, and removes all again.
# Some minutes, and 8 GB of disk meanwhile. From the environment:
#
#   ENGINE        docker, podman or buildah; otherwise the first of them that can run a container here. buildah runs it
#                 without a container (chroot): as the same user, but nothing makes the root file system read-only
#   BASE_IMAGE    of the Dockerfile; otherwise a Debian made by debootstrap, which needs root
#   TORCH         cpu (default) or gpu
#   TORCH_CPU_INDEX   of the Dockerfile; empty where pip's configuration knows a build for the CPU
#   RUN_OPTIONS   more options for `run`, as "--gpus all"
#
# pip's configuration on this machine counts in the build, too, with the files and folders that it names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

READY_WITHIN_S=180
SORTED_WITHIN_S=900
STOPPED_WITHIN_S=60
NAME=accm-check-$$
IMAGE=localhost/$NAME
USER_IDS=10001:10001 # the Dockerfile's
WORK=$(mktemp -d "${TMPDIR:-/tmp}/accm-check-XXXXXX")
CONFINED=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
ACCM_API_KEY=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export ACCM_API_KEY
ENGINE=${ENGINE:-} BASE="" container="" server_pid=""

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'container_check: %s\n' "$*" >&2; exit 1; }

# ---- engines: docker and podman are called alike; buildah has no containers that run, only a command in a root

choose_engine() { # sets ENGINE
    local candidate
    for candidate in ${ENGINE:-docker podman buildah}; do
        ENGINE=$candidate
        command -v "$candidate" >/dev/null || continue
        load_base && can_run && return
        drop_base
    done
    fail "No engine can run a container here. Start docker, or install podman or buildah. What they said: $(<"$WORK/engine.log")"
}

can_run() {
    case $ENGINE in
        buildah)
            local probe code=0
            probe=$(buildah from -q "$BASE") && buildah run --isolation chroot "$probe" -- true || code=$?
            buildah rm "$probe"
            return "$code" ;;
        *) "$ENGINE" run --rm "${CONFINED[@]}" "$BASE" true ;;
    esac >>"$WORK/engine.log" 2>&1
}

load_base() { # sets BASE
    BASE=${BASE_IMAGE:-$IMAGE-base}
    [[ -n ${BASE_IMAGE:-} ]] && return
    case $ENGINE in
        buildah)
            local root
            root=$(buildah from -q scratch) && buildah add -q "$root" "$WORK/base.tar" / \
                && buildah commit -q --rm "$root" "$BASE" ;;
        *) "$ENGINE" import - "$BASE" <"$WORK/base.tar" ;;
    esac >>"$WORK/engine.log" 2>&1
}

drop_base() {
    [[ -n ${BASE_IMAGE:-} ]] || "$ENGINE" rmi "$BASE" || true
} >/dev/null 2>&1

make_base() { # a Debian with Python, as an archive
    command -v debootstrap >/dev/null || fail "No debootstrap here: install it, or give BASE_IMAGE."
    ((EUID == 0)) || fail "debootstrap needs root: run this as root, or give BASE_IMAGE."
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$WORK/root" \
        >"$WORK/debootstrap.log" || fail "debootstrap: $(tail -3 "$WORK/debootstrap.log")"
    tar -C "$WORK/root" --one-file-system -cf "$WORK/base.tar" .
    rm -rf "$WORK/root"
}

# ---- building

read_pip_settings() { # writes pip.conf; sets local_paths to what it names on this machine
    mapfile -t local_paths < <(python3 - "$WORK/pip.conf" <<'END'
import ast, pathlib, subprocess, sys

shown = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
values = {}
for line in shown.splitlines():  # global, then install, then the environment: the last counts most
    name, _, value = line.partition("=")
    section, _, key = name.rpartition(".")
    if section in ("global", "install", ":env:"):
        values[key] = ast.literal_eval(value)
words = [word for value in values.values() for word in value.split()]
paths = {word for word in words if word.startswith("/")}
# the pages of an index refer to files beside it
paths |= {str(pathlib.PurePosixPath(word.removeprefix("file://")).parent) for word in words if word.startswith("file://")}
print(*sorted(path for path in paths if pathlib.Path(path).exists()), sep="\n")
with open(sys.argv[1], "w") as file:
    print("[global]", *(f"{key} = {' '.join(value.split())}" for key, value in values.items()), sep="\n", file=file)
END
    )
    [[ -n ${local_paths[0]:-} ]] || local_paths=()
}

build() {
    local options=(--secret "id=pip,src=$WORK/pip.conf" --build-arg "BASE_IMAGE=$BASE"
        --build-arg "TORCH=${TORCH:-cpu}" -t "$IMAGE") path
    [[ -v TORCH_CPU_INDEX ]] && options+=(--build-arg "TORCH_CPU_INDEX=$TORCH_CPU_INDEX")
    for path in "${local_paths[@]}"; do
        [[ $ENGINE != docker ]] || fail "pip's configuration names $path, which docker cannot mount; use ENGINE=podman."
        options+=(-v "$path:$path:ro")
    done
    case $ENGINE in
        docker) DOCKER_BUILDKIT=1 nice docker build "${options[@]}" . ;;
        podman) nice podman build --format docker --layers=false "${options[@]}" . ;;
        buildah) nice buildah bud --isolation chroot --format docker --layers=false "${options[@]}" . ;;
    esac >"$WORK/build.log" 2>&1 || { tail -40 "$WORK/build.log" >&2; fail "The image could not be built."; }
}

image_size() {
    case $ENGINE in
        buildah) buildah images --json "$IMAGE" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["size"])' ;;
        *) "$ENGINE" image inspect --format '{{.Size}}' "$IMAGE" ;;
    esac
}

# ---- running

prepare_data() {
    case $ENGINE in
        buildah)
            install --directory --owner="${USER_IDS%:*}" --group="${USER_IDS#*:}" "$WORK/data"
            container=$(buildah from -q "$IMAGE") ;;
        *) "$ENGINE" volume create "$NAME" >/dev/null ;;
    esac
}

in_image() { # run a command in the image, with its data folder
    local options
    read -ra options <<<"${RUN_OPTIONS:-}"
    case $ENGINE in
        buildah)
            buildah run --isolation chroot --user "$USER_IDS" --cap-drop ALL -v "$WORK/data:/data" \
                --mount type=tmpfs,destination=/tmp,tmpfs-mode=1777 --env ACCM_API_KEY="${key-}" "$container" -- "$@" ;;
        *)
            "$ENGINE" run --rm -i "${CONFINED[@]}" "${options[@]}" -v "$NAME:/data" \
                --env ACCM_API_KEY="${key-}" --entrypoint "$1" "$IMAGE" "${@:2}" ;;
    esac
}

start_server() { # sets port
    local options
    read -ra options <<<"${RUN_OPTIONS:-}"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    case $ENGINE in
        buildah) # exec: the shell's number becomes the server's, the same inside and outside
            # shellcheck disable=SC2016
            key=$ACCM_API_KEY in_image sh -c 'echo $$ >/data/server.pid; exec accm serve --host 0.0.0.0 --port "$0"' \
                "$port" >"$WORK/server.log" 2>&1 &
            server_pid=$! ;;
        *) # as the image says: its entry, its port
            "$ENGINE" run -d --name "$NAME" "${CONFINED[@]}" "${options[@]}" -v "$NAME:/data" --env ACCM_API_KEY \
                -p "127.0.0.1:$port:3000" "$IMAGE" >/dev/null ;;
    esac
}

show_log() {
    case $ENGINE in
        buildah) tail -30 "$WORK/server.log" >&2 ;;
        *) "$ENGINE" logs --tail 30 "$NAME" >&2 ;;
    esac
}

stop_server() { # by SIGTERM, as every engine and cluster does it; a server that has to be killed fails the check
    local started=$SECONDS
    case $ENGINE in
        buildah)
            kill -TERM "$(<"$WORK/data/server.pid")"
            timeout "$STOPPED_WITHIN_S" tail --pid="$server_pid" -f /dev/null || fail "Still there after SIGTERM."
            wait "$server_pid" || true
            server_pid="" ;;
        *)
            "$ENGINE" stop --time "$STOPPED_WITHIN_S" "$NAME" >/dev/null
            ((SECONDS - started < STOPPED_WITHIN_S)) || fail "Still there $STOPPED_WITHIN_S s after SIGTERM."
            "$ENGINE" rm "$NAME" >/dev/null ;;
    esac
    echo "stopped after $((SECONDS - started)) s"
}

clean_up() {
    set +e
    if [[ $ENGINE == buildah ]]; then
        [[ -n $server_pid && -s $WORK/data/server.pid ]] && kill -KILL "$(<"$WORK/data/server.pid")"
        [[ -n $container ]] && buildah rm "$container"
        buildah rmi "$IMAGE"
        drop_base
    elif [[ -n $ENGINE ]]; then
        "$ENGINE" rm --force "$NAME"
        "$ENGINE" volume rm "$NAME"
        "$ENGINE" rmi "$IMAGE"
        drop_base
    fi >/dev/null 2>&1
    rm -rf "$WORK"
}

# ---- what is checked

check_confined() { # what the user could write to, if the root file system were not read-only
    local writable
    writable=$(in_image find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' \
        -not -path /tmp -not -path /var/tmp -not -path '/run/*' -not -path '/data*' 2>/dev/null || true)
    [[ -z $writable ]] || fail "The image's user may write to: $writable"
    [[ $(in_image id -u) == "${USER_IDS%:*}" ]] || fail "The image does not run as ${USER_IDS%:*}."
}

check_key_wanted() {
    local said
    said=$(in_image timeout 60 accm serve --host 0.0.0.0 2>&1) && fail "The service ran on 0.0.0.0 without a key."
    grep -q ACCM_API_KEY <<<"$said" || fail "Without a key the service said: $said"
}

check_accuracy() { # of what was downloaded, with the truth from the simulation
    in_image sh -c 'cat >/tmp/sorted.nwb && accm evaluate /tmp/sorted.nwb --truth /data/check_truth.nwb --json' \
        <"$WORK/sorted.nwb" >"$WORK/score.json"
    python3 - "$WORK/score.json" <<'END' || fail "Less than half of the units were found: $(<"$WORK/score.json")"
import json, sys

score = json.load(open(sys.argv[1]))
print(f"{score['well_detected']} of {score['true_units']} units well detected, {score['false_units']} false")
sys.exit(score["well_detected"] < score["true_units"] / 2)
END
}

main() {
    trap clean_up EXIT
    say "Base image"
    [[ -n ${BASE_IMAGE:-} ]] || make_base
    choose_engine
    read_pip_settings
    say "Building with $ENGINE"
    local started=$SECONDS
    build
    echo "built after $((SECONDS - started)) s; $(image_size) bytes"
    prepare_data
    say "Is the image's user confined, and a key asked for"
    check_confined
    check_key_wanted
    say "A session"
    in_image accm simulate /data/check.nwb --probe poly32 --duration 30 --units 8 --seed 1
    in_image cat /data/check.nwb >"$WORK/check.nwb"
    say "The service"
    start_server
    python3 deploy/check_service.py "http://127.0.0.1:$port" "$WORK/check.nwb" "$WORK/sorted.nwb" \
        --ready-within "$READY_WITHIN_S" --done-within "$SORTED_WITHIN_S" || { show_log; fail "See above."; }
    check_accuracy
    stop_server
    say "Passed in $SECONDS s"
}

main "$@"
