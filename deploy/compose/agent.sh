#!/bin/sh
# An agent that joins with the token that `enroll` left for it. Later starts find the certificate and leave the token alone.
set -eu
exec switchgear agent "$@" --join @/secrets/join
