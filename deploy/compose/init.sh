#!/bin/sh
# Makes the CA, the services' certificate and the first admin's token, once, and hands out what others need of it: all but the CA's
# key and the token, which stay with the gateway.
set -eu

if [ ! -e "$SWITCHGEAR_STATE_DIR/token" ]; then
    # Join tokens name the first host: nodes join at the gateway. The output has the token, and logs are no place for it.
    switchgear init --database-url "$SWITCHGEAR_DATABASE_URL" \
        --host gateway --host collector --host scheduler --host recovery --host autoscaler --host router >/dev/null
fi

for file in ca.crt service.crt service.key; do
    cp "$SWITCHGEAR_STATE_DIR/pki/$file" /secrets/services/
    cp "$SWITCHGEAR_STATE_DIR/pki/$file" /secrets/prometheus/
done
# Prometheus runs as another user, and nobody else has this volume.
chmod -R u=rwX,go=rX /secrets/prometheus
