#!/bin/sh
# Four wheels, each with a line an hour.
set -eu
lines=$(wc -l < check/hourly.txt)
[ "$lines" -eq 96 ] || { echo "$lines lines instead of 96"; exit 1; }
