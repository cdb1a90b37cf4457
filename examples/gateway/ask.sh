#!/bin/sh
# Asks a gateway by curl: sh ask.sh "What is the capital of France?"; the headers say where the answer came from.
url=${OPENAI_BASE_URL:-http://127.0.0.1:8484/v1}
question=$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')
curl --silent --show-error --include --max-time 300 "$url/chat/completions" \
    --header "Content-Type: application/json" --header "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
    --header "x-edgeroute-data-class: ${DATA_CLASS:-chat}" \
    --data "{\"model\": \"edgeroute\", \"max_tokens\": 64, \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
