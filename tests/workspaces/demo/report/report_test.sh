#!/bin/sh
# The report names every wheel and ends with a checksum.
set -eu
report=report/report.sealed.txt
for wheel in 1 2 3 4; do
  grep -q "^ *$wheel  " "$report" || { echo "wheel $wheel is missing:"; cat "$report"; exit 1; }
done
tail -n 1 "$report" | grep -Eqx 'crc32 [0-9a-f]{8}' || { echo "no checksum:"; cat "$report"; exit 1; }
