#!/bin/sh
# Slurm Epilog: takes away what a job has left mounted on a node, once no other job uses it.
#
# slurm.conf: Epilog=/opt/udi/share/udi/slurm/epilog.sh (or a directory that holds a link to it).
#
# Runs as root, and does all its work as the job's user: root must not follow paths in a directory that a user owns.
# Always ends with 0: an Epilog that fails drains the node.  Settings as in prolog.sh.
udi=/opt/udi/bin/udi
wait=60
[ ! -r /etc/udi/slurm.sh ] || . /etc/udi/slurm.sh
udi=${UDI_PROGRAM:-$udi}

home=$(getent passwd "$SLURM_JOB_UID" | cut -d: -f6)
group=${SLURM_JOB_GID:-$(getent passwd "$SLURM_JOB_UID" | cut -d: -f4)}
cd /
said=$(timeout "$wait" setpriv --reuid="$SLURM_JOB_UID" --regid="$group" --init-groups -- \
  env -u XDG_RUNTIME_DIR -u SLURM_JOB_ID HOME="$home" USER="$SLURM_JOB_USER" \
  "$udi" node clean --job="$SLURM_JOB_ID" 2>&1 </dev/null) ||
  logger -t udi-epilog "job $SLURM_JOB_ID: $said" 2>/dev/null
exit 0
