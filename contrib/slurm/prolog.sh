#!/bin/sh
# Slurm Prolog: has the images that a job names mounted on each of its nodes before the job starts.
#
#   #SBATCH --comment=udi:docker:ghcr.io/lab/reco:2.1,docker:lab/plot:1
#
# slurm.conf: Prolog=/opt/udi/share/udi/slurm/prolog.sh (or a directory that holds a link to it) and
# PrologFlags=Alloc, so that it runs when the nodes are given and not when the first step starts.
#
# Runs as root, and does all its work as the job's user.  Images must be in the store: nodes pull nothing.
# Always ends with 0: a Prolog that fails drains the node, and a task mounts its image itself if need be.
# Settings, here or in /etc/udi/slurm.sh: udi (the program), wait (seconds that a job's start may be delayed).
udi=/opt/udi/bin/udi
wait=60
[ ! -r /etc/udi/slurm.sh ] || . /etc/udi/slurm.sh
udi=${UDI_PROGRAM:-$udi}

# Slurm tells a Prolog the comment only from 23.02 on.
comment=${SLURM_JOB_COMMENT-$(squeue -h -j "$SLURM_JOB_ID" -o %k 2>/dev/null)}
case " $comment " in *[\ \;]udi:*) ;; *) exit 0 ;; esac
images=${comment##*udi:}
images=${images%%[ ;]*}

home=$(getent passwd "$SLURM_JOB_UID" | cut -d: -f6)
set -f
IFS=,
# shellcheck disable=SC2086 -- one word for each image
set -- $images
# Without SLURM_JOB_ID the mount is the node's and not the job's: all jobs of this user share it.
cd /
said=$(timeout "$wait" setpriv --reuid="$SLURM_JOB_UID" --regid="$SLURM_JOB_GID" --init-groups -- \
  env -u XDG_RUNTIME_DIR -u SLURM_JOB_ID HOME="$home" USER="$SLURM_JOB_USER" \
  "$udi" node warm --no-pull --job="$SLURM_JOB_ID" -- "$@" 2>&1 </dev/null) ||
  logger -t udi-prolog "job $SLURM_JOB_ID: $said" 2>/dev/null
exit 0
