#!/bin/sh
# Makes pgbench's bank in the database that PGHOST and its like name, unless it is there already, whole.
set -eu
whole="SELECT count(*) FROM information_schema.columns WHERE table_name = 'pgbench_history' AND column_name = 'id'"
if [ "$(psql -qAt -c "$whole")" = 1 ]; then
    echo "the bank is there"
    exit
fi
pgbench -q -i -s 1
psql -q -c "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY"
