#!/bin/sh
# Makes the CA, the certificates and the first admin's token, once, and hands out to each what it needs of it. The CA's key and the
# token stay with the gateway. The certificates of router and Prometheus may not do what that of the services may.
set -eu

if [ ! -e "$SWITCHGEAR_STATE_DIR/token" ]; then
    # Join tokens name the first host: nodes join at the gateway. The output has the token, and logs are no place for it.
    switchgear init --database-url "$SWITCHGEAR_DATABASE_URL" \
        --host gateway --host collector --host scheduler --host recovery --host autoscaler --router-host router >/dev/null
fi

hand_out() {
    cp "$SWITCHGEAR_STATE_DIR/pki/ca.crt" "$SWITCHGEAR_STATE_DIR/pki/$1.crt" "$SWITCHGEAR_STATE_DIR/pki/$1.key" "$2"
}
hand_out service /secrets/services/
hand_out router /secrets/router-tls/
hand_out metrics /secrets/prometheus/
# Prometheus runs as another user, and nobody else has this volume.
chmod -R u=rwX,go=rX /secrets/prometheus
