#!/bin/sh
# Signs for the bridge with step-ca: step-ca.sh PROVISIONER PASSWORD_FILE
#
# A JWK provisioner whose claims allow so short a life (minTLSCertDuration). `step ca bootstrap` has been run by the bridge's user.
# step-ca compares the names in the request with those of the token, so it works with gateways that ask in their own name.
set -eu
request=$(mktemp -d)
trap 'rm -rf "$request"' EXIT
cat >"$request/json"
field() { jq -er ".$1" "$request/json"; }

field csr >"$request/csr.pem"
token=$(step ca token "$(field common_name)" --san "$(field spiffe_id)" \
    --provisioner "$1" --provisioner-password-file "$2")
step ca sign --token "$token" --not-after "$(field seconds)s" "$request/csr.pem" "$request/chain.pem" >&2
cat "$request/chain.pem"
