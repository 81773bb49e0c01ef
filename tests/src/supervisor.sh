# Keeps one server alive exactly as long as somebody holds the other end of our stdin, then removes it without trace.
#
# usage: sh supervisor.sh DIRECTORY LOCK PATIENCE_S GRACE_S COMMAND…
#   DIRECTORY   everything the server writes is in here; removed at the end. Gets stdout.log, stderr.log.
#   LOCK        a file to hold an exclusive lock on for as long as the server lives, or - for none. Holding one also means
#               "this is an engine": the bridges it made are removed with it.
# Says on stdout: `waiting`, `started`, `ended STATUS`, `failed REASON`; one line each.
# The holder may die in any way whatever: the kernel closes the pipe, and that is all the notice this script needs.
set -u
dir=$1 lock=$2 patience=$3 grace=$4
shift 4
exec 3<&0 </dev/null

# The engine calls a network's bridge br- and the first digits of the network's id, and keeps the ids in a file. Other engines
# on this machine have bridges too. docker0 is shared by all: only the last one out, which was also the first one in, removes it.
own_bridges() {
  for link in /sys/class/net/br-*; do
    bridge=${link##*/}
    grep -aq "${bridge#br-}" "$dir/data/network/files/local-kv.db" && echo "$bridge"
  done
  [ "$docker0" = absent ] && [ -e /sys/class/net/docker0 ] && ! grep -qx dockerd /proc/[0-9]*/comm && echo docker0
} 2>/dev/null

remove_bridge() {
  for table in filter nat; do
    iptables -w 5 -t "$table" -S 2>/dev/null | grep -w -- "$1" | sed 's/^-A/-D/' | while read -r rule; do
      # Unquoted on purpose: a rule is a list of arguments.
      iptables -w 5 -t "$table" $rule
    done
  done
  ip link delete "$1"
}

# Ends whatever we are waiting for: the lock or the server.
# An engine runs behind `unshare`, which does not pass SIGTERM on: it goes to the child, if there is one.
stop() {
  gone=yes
  [ -n "$child" ] || return
  inner=$(grep -l "^PPid:[[:space:]]*$child\$" /proc/[0-9]*/status | cut -d/ -f3)
  kill -TERM ${inner:-$child}
  tenths=0
  while [ "$tenths" -lt $((grace * 10)) ] && kill -0 "$child"; do
    sleep 0.1
    tenths=$((tenths + 1))
  done
  kill -KILL "$child"
} 2>/dev/null

# A trapped signal interrupts `wait`: ask again until the child is really gone.
await() {
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
  done
  child=
}

gone= child=
trap stop TERM INT HUP
(
  trap - TERM INT HUP
  while read -r _; do :; done
  kill -TERM $$
) <&3 &
watcher=$!

if [ "$lock" != - ]; then
  exec 9>"$lock"
  if ! flock -n 9; then
    echo waiting
    flock -w "$patience" 9 3<&- &
    child=$!
    await
    if [ "$status" != 0 ]; then
      kill "$watcher" 2>/dev/null
      rm -rf "$dir"
      # Last, because it ends this script if the holder is gone.
      echo "failed another private engine still holds $lock after $patience s"
      exit 1
    fi
  fi
  docker0=present
  [ -e /sys/class/net/docker0 ] || docker0=absent
fi

"$@" 3<&- >"$dir/stdout.log" 2>"$dir/stderr.log" &
child=$!
# From here on nothing may end this script early, and the server must not inherit that.
trap '' PIPE
echo started 2>/dev/null
# The signal may have come while there was no child yet.
[ -z "$gone" ] || stop
await
kill "$watcher" 2>/dev/null

if [ "$lock" != - ]; then
  for bridge in $(own_bridges); do
    remove_bridge "$bridge"
  done >/dev/null 2>&1
  exec 9>&-
fi
echo "ended $status" 2>/dev/null
# A server that died by itself left a reason in its logs: they stay until the holder has let go.
while read -r _ <&3; do :; done
# Processes that were killed a moment ago may still be writing, hence a few attempts.
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  rm -rf "$dir" 2>/dev/null && break
  sleep 0.2
done
