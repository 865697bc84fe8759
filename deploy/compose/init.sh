#!/bin/sh
# Makes the certificates and passwords of this installation, once; what is there already stays. Each volume below /secrets is
# mounted by the one container that needs it, whose user is not ours: hence files that all may read, in a volume that nobody else has.
set -eu

if [ ! -e "$SWITCHGEAR_STATE_DIR/pki/ca.crt" ]; then
    switchgear init \
        --host collector --host scheduler --host recovery --host autoscaler --host gateway --host router
fi

umask 077
[ -s /secrets/postgres/password ] || python -c 'import secrets; print(secrets.token_urlsafe(32), end="")' >/secrets/postgres/password
[ -s /secrets/grafana/password ] || python -c 'import secrets; print(secrets.token_urlsafe(16), end="")' >/secrets/grafana/password
printf 'postgres:5432:switchgear:switchgear:%s\n' "$(cat /secrets/postgres/password)" >/secrets/services/pgpass

for file in ca.crt service.crt service.key; do
    cp "$SWITCHGEAR_STATE_DIR/pki/$file" /secrets/services/
    cp "$SWITCHGEAR_STATE_DIR/pki/$file" /secrets/prometheus/
done
chmod -R u=rwX,go=rX /secrets/postgres /secrets/grafana /secrets/prometheus
