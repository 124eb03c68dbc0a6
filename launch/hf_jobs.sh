#!/bin/bash
# Hugging Face Jobs: any recipe with any YAML on one of the Hub's machines.
#   REPO=https://github.com/you/llmrecipes launch/hf_jobs.sh sft configs/smollm2-135m/sft.yaml --push_to_hub --hub_model_id you/x
# The machine's disk is deleted with the job: push the result. FLAVOR (a100-large), TIMEOUT (12h) and IMAGE are taken from the
# environment; `hf jobs hardware` lists flavors. Needs `hf auth login`.
set -euo pipefail
: "${1:?usage: REPO=<git address> launch/hf_jobs.sh RECIPE CONFIG.yaml [--key value ...]}" "${2:?CONFIG.yaml is missing}"
: "${REPO:?the git address that the job clones}"
start='git clone --depth 1 "$REPO" llmrecipes && cd llmrecipes && pip install -r requirements.txt && bash launch/start.sh "$@"'
exec hf jobs run --flavor "${FLAVOR:-a100-large}" --timeout "${TIMEOUT:-12h}" --secrets HF_TOKEN --env "REPO=$REPO" \
    --env "LAUNCH_CONFIG=${LAUNCH_CONFIG:-ddp}" -- "${IMAGE:-python:3.11}" bash -c "$start" start "$@"
