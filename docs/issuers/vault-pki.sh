#!/bin/sh
# Signs for the bridge with the PKI secrets engine of Vault or OpenBao: vault-pki.sh MOUNT ROLE
#
# The role takes names from this call alone, and makes what an X.509-SVID is:
#   vault write MOUNT/roles/ROLE allow_any_name=true enforce_hostnames=false allowed_uri_sans='spiffe://TRUST-DOMAIN/gateway/*' \
#       use_csr_common_name=false use_csr_sans=false key_type=any key_usage=DigitalSignature \
#       client_flag=true server_flag=true not_before_duration=2m max_ttl=1h
# VAULT_ADDR and VAULT_TOKEN (or an agent's) come from the bridge's environment.
set -eu
request=$(mktemp -d)
trap 'rm -rf "$request"' EXIT
cat >"$request/json"
field() { jq -er ".$1" "$request/json"; }

field csr >"$request/csr.pem"
vault write -format=json "$1/sign/$2" csr=@"$request/csr.pem" common_name="$(field common_name)" \
    uri_sans="$(field spiffe_id)" exclude_cn_from_sans=true ttl="$(field seconds)s" >"$request/answer.json"
jq -er '.data.certificate, (.data.ca_chain // [.data.issuing_ca])[]' "$request/answer.json"
