#!/bin/sh
# Signs for the bridge with a SPIRE server: spire.sh SOCKET
#
# By the server's own API (SVID.MintX509SVID) on its private socket: `spire-server x509 mint` makes a key of its own and
# takes no request. `identity.trust_domain` is the server's. Names come from the request, so gateways must ask in their
# own name. Its roots change: keep `trust_anchors` fresh by `spire-server bundle show > FILE`, from a timer.
set -eu
request=$(mktemp -d)
trap 'rm -rf "$request"' EXIT
cat >"$request/json"
field() { jq -er ".$1" "$request/json"; }

csr=$(field csr | sed -e '/^-----/d' | tr -d '\n')
jq -n --arg csr "$csr" --argjson ttl "$(field seconds)" '{csr: $csr, ttl: $ttl}' |
    grpcurl -plaintext -unix -d @ "$1" spire.api.server.svid.v1.SVID/MintX509SVID >"$request/answer.json"
jq -er '.svid.certChain[]' "$request/answer.json" | while read -r der; do
    echo '-----BEGIN CERTIFICATE-----'
    echo "$der" | fold -w 64
    echo '-----END CERTIFICATE-----'
done
