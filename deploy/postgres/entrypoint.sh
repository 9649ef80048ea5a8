#!/bin/sh
# Makes the cluster and its database at the first start, then serves. Takes of the official image's
# variables POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD_FILE and PGDATA.
set -eu
as_postgres="setpriv --reuid postgres --regid postgres --init-groups --"
install -d -o postgres -g postgres -m 700 "$PGDATA"
install -d -o postgres -g postgres /run/postgresql
if ! [ -e "$PGDATA/main" ]; then
  # Beside it until it is whole: a start that was cut off begins anew.
  new="$PGDATA/new"
  rm -rf "$new"
  # Root can read the file that it is in, and the server's user cannot.
  install -o postgres -m 400 "$POSTGRES_PASSWORD_FILE" /run/postgresql/password
  $as_postgres initdb -D "$new" -U "$POSTGRES_USER" --auth=scram-sha-256 \
    --pwfile=/run/postgresql/password --encoding=UTF8 --locale=C.UTF-8
  rm /run/postgresql/password
  echo "host all all all scram-sha-256" >> "$new/pg_hba.conf"
  if [ "${POSTGRES_DB:-$POSTGRES_USER}" != postgres ]; then
    echo "CREATE DATABASE \"${POSTGRES_DB:-$POSTGRES_USER}\";" |
      $as_postgres postgres --single -D "$new" postgres >/dev/null
  fi
  mv "$new" "$PGDATA/main"
fi
exec $as_postgres postgres -D "$PGDATA/main" -c 'listen_addresses=*'
