#!/bin/bash
# One machine's part of a launch; the other files in this folder call it, and so may you:
#   launch/start.sh RECIPE CONFIG.yaml [--key value ...]          e.g. launch/start.sh sft configs/smollm2-135m/sft.yaml
# From the environment (defaults in brackets): NUM_MACHINES (1), MACHINE_RANK (0), MAIN_IP and MAIN_PORT of the first machine,
# NUM_GPUS of each machine (all that nvidia-smi shows), LAUNCH_CONFIG, a file in configs/accelerate (ddp), and MORE_KEYS, further
# keys in one text, quoted as in a shell: --run_name 'two words' --datasets '[{path: my chats.jsonl}]'.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -n ${1:-} && -n ${2:-} ]] || { echo "usage: launch/start.sh RECIPE CONFIG.yaml [--key value ...]" >&2; exit 2; }
recipe=$1 config=$2
shift 2
if [[ ${MORE_KEYS:-} =~ [^[:space:]] ]]; then
    more=$(xargs printf '%s\n' <<<"$MORE_KEYS") || { echo "error: MORE_KEYS: a quote is not closed: $MORE_KEYS" >&2; exit 2; }
    while IFS= read -r word; do set -- "$@" "$word"; done <<<"$more"
fi
[[ -f recipes/$recipe.py ]] || { echo "error: $recipe is not a recipe: $(cd recipes && echo *.py)" >&2; exit 2; }
for name in NUM_MACHINES MACHINE_RANK MAIN_PORT NUM_GPUS; do
    [[ ${!name:-0} =~ ^(0|[1-9][0-9]*)$ ]] || { echo "error: $name=${!name} is not a number" >&2; exit 2; }
done
machines=${NUM_MACHINES:-1}
if ((${MACHINE_RANK:-0} >= machines)); then # without this, two machines that each take themselves for the only one
    echo "error: MACHINE_RANK=${MACHINE_RANK:-0} of NUM_MACHINES=$machines: ranks count from 0; set the number of all machines" >&2
    exit 2
fi
gpus=${NUM_GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}
gpus=$((gpus > 0 ? gpus : 1))
if grep -q 'alone=True)$' "recipes/$recipe.py"; then # it shares no work, so further processes would do the same again
    ((machines == 1)) || { echo "error: $recipe runs in one process; start it on one machine, not on $machines" >&2; exit 2; }
    gpus=1
fi
processes=$((machines * gpus))
launch=${LAUNCH_CONFIG:-ddp}
[[ -f configs/accelerate/$launch.yaml ]] || { echo "error: LAUNCH_CONFIG=$launch is not one of: $(cd configs/accelerate && echo *.yaml)" >&2; exit 2; }
# Without a launcher, which would end at SIGTERM and not wait until the recipe has saved.
((processes > 1)) || exec python "recipes/$recipe.py" --config "$config" "$@"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110} # seconds to save after SIGTERM; 30 by default
options=(--config_file "configs/accelerate/$launch.yaml" --num_machines "$machines" --num_processes "$processes")
if ((machines > 1)); then
    [[ -n ${MAIN_IP:-} ]] || { echo "error: MAIN_IP is missing: the address of the first machine" >&2; exit 2; }
    options+=(--machine_rank "${MACHINE_RANK:-0}" --main_process_ip "$MAIN_IP")
    options+=(--main_process_port "${MAIN_PORT:-29500}" --rdzv_backend static --same_network)
fi
exec accelerate launch "${options[@]}" "recipes/$recipe.py" --config "$config" "$@"
