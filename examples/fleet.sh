#!/bin/sh
# A small fleet by bhyve-rs's own commands and their exit statuses, and nothing else.
#
#	fleet.sh DIR MACHINES ISO TEXT
#
# makes so many machines in DIR, lets each boot from the image of a CD, waits until TEXT is on its console, stops all,
# runs the first once more on a snapshot of its disk, and takes everything away. $BHYVE_RS is the program.

set -eu

usage="usage: fleet.sh DIR MACHINES ISO TEXT"
dir=${1:?$usage} machines=${2:?$usage} iso=${3:?$usage} text=${4:?$usage}
program=${BHYVE_RS:-bhyve-rs}
names=$(n=1; while [ "$n" -le "$machines" ]; do echo "fleet$n"; n=$((n + 1)); done)

# Whatever happens, nothing is left running.
cleanup() {
	for name in $names; do
		"$program" kill "$name" 2>/dev/null || true
	done
}
trap cleanup EXIT

for name in $names; do
	# 4 is an error, and says which.
	"$program" --quiet new "$name" --guest openbsd --iso "$iso" --disk 64M --memory 64M --dir "$dir"
	"$program" check "$dir/$name.toml"
	"$program" start -c "$dir/$name.toml" -o boot.serial=true
	echo "$name: started"
done

for name in $names; do
	"$program" wait "$name" --for "$text" --timeout 120
	echo "$name: is up"
done

# 0: it stopped by itself, or its power was cut after the time.
for name in $names; do
	"$program" stop "$name" --timeout 2
	# A machine that does not run has no status.
	if "$program" status "$name" >/dev/null 2>&1; then
		echo "$name: still runs" >&2
		exit 1
	fi
done

# The disk of the first as it is now, and the machine on top of it: what it writes from here on is apart.
first=$(echo "$names" | head -n 1)
"$program" image create --backing "$first.img" --backing-format raw "$dir/$first.qcow2"
"$program" start -c "$dir/$first.toml" -o "disk.0.path=$dir/$first.qcow2" -o boot.serial=true
"$program" wait "$first" --for "$text" --timeout 120
"$program" stop "$first" --timeout 2
# The process that had the image may take a moment to go.
tries=0
until "$program" image check "$dir/$first.qcow2" >/dev/null; do
	tries=$((tries + 1))
	[ "$tries" -lt 10 ]
	sleep 1
done
echo "$first: ran on a snapshot"

for name in $names; do
	rm "$dir/$name.toml" "$dir/$name.img"
	echo "$name: gone"
done
rm "$dir/$first.qcow2"
