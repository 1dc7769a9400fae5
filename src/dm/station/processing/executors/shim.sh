#!/bin/sh
# Runs one stage process so that its result survives the service that started it.
#
#   shim.sh DIRECTORY LIMIT INPUT COMMAND [ARGUMENT...]
#
# Leaves in DIRECTORY: claim and command (boot id and /proc/PID/stat line of this shim and of the command), stdout and
# stderr (the first LIMIT bytes each; the rest is read and dropped, so that the command neither blocks nor fills the
# disk), and, when the command has ended, exit (its status, synced). Started in a session of its own; the command gets
# another one, so that it can be stopped as a whole while this shim stays to note its end.
umask 077
cd -- "$1" || exit 1
limit=$2 input=$3
shift 3
read -r boot </proc/sys/kernel/random/boot_id
read -r self </proc/self/stat
set -C # the claim is made once: a service that gave this start up has claimed it itself
{ echo "$boot $self" >claim; } 2>/dev/null || exit 0
set +C
{ dd bs=65536 count="$limit" iflag=count_bytes,fullblock of=stdout status=none; exec cat >/dev/null; } <out &
{ dd bs=65536 count="$limit" iflag=count_bytes,fullblock of=stderr status=none; exec cat >/dev/null; } <err &
(
    read -r self </proc/self/stat
    echo "$boot $self" >command
    exec setsid "$@"
) <"$input" >out 2>err
status=$?
echo "$status" >exit
sync exit 2>/dev/null
wait
