#!/bin/sh
# Asks a human before a deployment, waits for the answer, and runs the command only when it is yes.
#
#   HITL_URL=https://hitl.example HITL_KEY=... examples/deploy.sh v1.4.2 ./roll-out.sh
#
# The command is run with VERSION in its environment: the one that the human approved, who may have changed it.
# Exit status: that of the command; 1 when the answer is no, or nobody answers in an hour; 2 on wrong usage.
# DEPLOY_ID names this deployment: started again with it, the script asks no second time.
set -eu

HITL_URL=${HITL_URL:-http://127.0.0.1:8811}
VERSION=${1:-}
[ $# -ge 2 ] || { echo "usage: $0 VERSION COMMAND [ARGUMENT...]" >&2; exit 2; }
case $VERSION in *[!A-Za-z0-9._-]*) echo "$0: a version is letters, digits, dot, dash, underscore" >&2; exit 2 ;; esac
shift
DEPLOY_ID=${DEPLOY_ID:-$(hostname)-$VERSION-$$-$(date +%s)}

# call METHOD PATH [CURL OPTION...]: the answer's body; a refusal or an outage ends with curl's own status
call() {
    method=$1 path=$2
    shift 2
    curl --silent --show-error --fail --request "$method" --max-time 75 \
        ${HITL_KEY:+--header "Authorization: Bearer $HITL_KEY"} "$@" "$HITL_URL$path"
}

# first NAME: the first string member of that name, of the JSON on standard input
first() {
    grep -o "\"$1\": *\"[^\"]*\"" | head -n 1 | sed 's/^[^:]*: *"//; s/"$//'
}

QUESTION=$(cat <<JSON
{"checkpoint_type": "deploy", "message": "May $VERSION go to production?",
 "context": {"payload": {"version": "$VERSION"}},
 "schema": {"type": "object", "required": ["version"], "additionalProperties": false,
            "properties": {"version": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}}},
 "timeout_seconds": 3600, "on_timeout": "reject"${HITL_SESSION:+, \"session_id\": \"$HITL_SESSION\"}}
JSON
)
ASKED=$(call POST /hitl/approvals --header "content-type: application/json" \
    --header "Idempotency-Key: deploy-$DEPLOY_ID" --data "$QUESTION")
ID=$(echo "$ASKED" | first approval_id)
echo "asked: $ID"

STATUS=pending FAILED=0
while [ "$STATUS" = pending ]; do
    # a restart of the service costs a second: the question is kept
    if ANSWER=$(call GET "/hitl/approvals/$ID?wait=60"); then
        STATUS=$(echo "$ANSWER" | first status) FAILED=0
    else
        FAILED=$((FAILED + 1))
        [ $FAILED -lt 60 ] || { echo "not deployed: the service does not answer" >&2; exit 1; }
        sleep 1
    fi
done

case $STATUS in
    approved | edited)
        VERSION=$(echo "$ANSWER" | grep -o '"context": *{.*' | first version)
        export VERSION
        echo "$STATUS: $VERSION"
        exec "$@"
        ;;
    *)
        echo "not deployed: $STATUS" >&2
        exit 1
        ;;
esac
