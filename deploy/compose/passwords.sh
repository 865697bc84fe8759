#!/bin/sh
# Makes the passwords of PostgreSQL and Grafana and the first API key of the router, once. Each volume below /secrets is mounted by those containers only that need it;
# theirs run as other users than ours, hence files that all may read in a volume that nobody else has.
set -eu
umask 077
[ -s /secrets/postgres/password ] || python -c 'import secrets; print(secrets.token_urlsafe(32), end="")' >/secrets/postgres/password
[ -s /secrets/grafana/password ] || python -c 'import secrets; print(secrets.token_urlsafe(16), end="")' >/secrets/grafana/password
[ -s /secrets/router/keys ] || python -c 'import secrets; print(secrets.token_urlsafe(32))' >/secrets/router/keys
printf 'postgres:5432:switchgear:switchgear:%s\n' "$(cat /secrets/postgres/password)" >/secrets/services/pgpass
chmod -R u=rwX,go=rX /secrets/postgres /secrets/grafana
