#!/bin/sh
# Asks the gateway, as the first admin, for what the others need to come in: a token with which Prometheus may read (good for a year),
# and a join token for each simulated node. A join token is good for one certificate; a node that has joined does not look at it again.
set -eu

[ -s /secrets/prometheus/token ] || switchgear tokens create prometheus --role viewer --days 366 >/secrets/prometheus/token
chmod a+r /secrets/prometheus/token

for node in n1 n2; do
    [ -s "/secrets/$node/join" ] || switchgear join-token --node "$node" >"/secrets/$node/join"
done
