#!/bin/sh
# Turns the hourly bands into a report with one line a wheel. usage: render.sh HOURLY
set -eu
echo "wheel  lowest kWh  highest kWh"
awk '
  !($1 in low) || $3 < low[$1] { low[$1] = $3 }
  !($1 in high) || $4 > high[$1] { high[$1] = $4 }
  $1 > wheels { wheels = $1 }
  END { for (wheel = 1; wheel <= wheels; wheel++) printf "%5d  %10.2f  %11.2f\n", wheel, low[wheel], high[wheel] }
' "$1"
