#!/bin/sh
# Signs for the bridge with `openssl ca`: openssl-ca.sh DIRECTORY
#
# DIRECTORY holds ca.cnf, whose default section knows key and certificate and has `rand_serial = yes` and
# `unique_subject = no`, and chain.pem, the intermediates that go with what it signs. One at a time: `openssl ca` keeps its books in files without a lock.
set -eu
ca=$1
request=$(mktemp -d)
trap 'rm -rf "$request"' EXIT
cat >"$request/json"
field() { jq -er ".$1" "$request/json"; }
when() { date -u -d "$(field "$1")" +%Y%m%d%H%M%SZ; }

field csr >"$request/csr.pem"
cat >"$request/svid.cnf" <<END
[svid]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth, serverAuth
subjectAltName = URI:$(field spiffe_id)
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
exec 9>"$ca/lock"
flock 9
openssl ca -config "$ca/ca.cnf" -batch -notext -preserveDN \
    -subj "/CN=$(field common_name)" -startdate "$(when not_before)" -enddate "$(when not_after)" \
    -extfile "$request/svid.cnf" -extensions svid -in "$request/csr.pem" -out "$request/certificate.pem" >&2
cat "$request/certificate.pem" "$ca/chain.pem"
