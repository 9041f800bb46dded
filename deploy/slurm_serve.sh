#!/usr/bin/env bash
# The service on a node of a SLURM cluster, for as long as the job lasts:
#
#   ACCM_DATA=/lab/accm sbatch deploy/slurm_serve.sh
#
# It runs the image that ACCM_IMAGE names (a file of Apptainer) or else the `accm` on PATH. The job's log says where
# it listens, how to reach it and where the key is. Jobs that were running when time was up wait in ACCM_DATA for the
# next start; the folder has to be one that all nodes see, used by one server at a time.
#SBATCH --job-name=accm
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=accm-%j.log
set -euo pipefail

READY_WITHIN_S=300
: "${ACCM_DATA:?Set ACCM_DATA to the folder of uploads, jobs and models.}"
mkdir -p "$ACCM_DATA"
# others may share the node: a key of one's own, and a port that is free
if [[ -z ${ACCM_API_KEY:-} ]]; then
    key_file=$ACCM_DATA/api_key
    [[ -s $key_file ]] || (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$key_file")
    ACCM_API_KEY=$(<"$key_file")
fi
export ACCM_API_KEY ACCM_DATA
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

if [[ -n ${ACCM_IMAGE:-} ]]; then
    gpu=()
    [[ -n ${CUDA_VISIBLE_DEVICES:-} ]] && gpu=(--nv)
    APPTAINERENV_ACCM_DATA=/data apptainer run "${gpu[@]}" --bind "$ACCM_DATA:/data" "$ACCM_IMAGE" \
        serve --host 0.0.0.0 --port "$port" &
else
    accm serve --host 0.0.0.0 --port "$port" &
fi
server=$!
trap 'kill -TERM "$server" 2>/dev/null' TERM INT

is_ready() {
    python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=4)' \
        "http://127.0.0.1:$port/readyz" 2>/dev/null
}

until is_ready; do
    kill -0 "$server" 2>/dev/null || { echo "The server has ended; the lines above say why." >&2; wait "$server"; exit 1; }
    ((SECONDS < READY_WITHIN_S)) || { echo "Not ready after $READY_WITHIN_S s." >&2; kill -TERM "$server"; exit 1; }
    sleep 2
done
node=$(hostname)
cat <<END

accm is ready after $SECONDS s on $node, port $port.
  from the cluster   http://$node:$port
  from elsewhere     ssh -N -L $port:$node:$port ${USER:-you}@${SLURM_SUBMIT_HOST:-the login node}
                     then http://127.0.0.1:$port
  key                ${key_file:-the one in ACCM_API_KEY}

END

# a signal ends the first wait at once; the second is for the server to finish
wait "$server" || wait "$server"
