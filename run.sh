#!/usr/bin/env bash
# Builds the daemon, starts it on two scratch disks and brings images onto both.
#
#   ./run.sh [URL ...]
#
# Without a URL it makes a qcow2 image and serves it from a local nginx. Ends
# with the daemon in the foreground; Ctrl-C stops everything that it started.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-}" in
  -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
  -*) echo "run.sh: unknown option $1; expected URLs" >&2; exit 2 ;;
esac
for url in "$@"; do
  case "$url" in
    http://*|https://*) ;;
    *) echo "run.sh: '$url' is no http:// or https:// URL" >&2; exit 2 ;;
  esac
done
. .ci/lib.sh
mkdir -p build
install_packages build run
echo "building (the log is in build/release.log)"
build release
bim=$PWD/build/release/bim

dir=$(mktemp -d /tmp/bim-run.XXXXXX)
daemon= nginx=
stop() {
  trap - EXIT INT TERM
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon" || true; }
  [ -z "$nginx" ] || { kill "$nginx" 2>/dev/null && wait "$nginx" || true; }
  rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ $# -eq 0 ]; then
  mkdir -p "$dir/www"
  echo "making a qcow2 image with qemu-img"
  head -c 96M /dev/urandom >"$dir/data"
  qemu-img create -q -f raw "$dir/disk.raw" 1G
  dd if="$dir/data" of="$dir/disk.raw" bs=1M seek=8 conv=notrunc status=none
  qemu-img convert -f raw -O qcow2 "$dir/disk.raw" "$dir/www/demo.qcow2"
  rm -f "$dir/data" "$dir/disk.raw"
  port=$(/usr/bin/python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])')
  cat >"$dir/nginx.conf" <<CONF
daemon off; worker_processes 1; pid $dir/nginx.pid; error_log stderr warn;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3;
  uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
  server { listen 127.0.0.1:$port; root $dir/www; }
}
CONF
  [ "$(id -u)" -ne 0 ] || sed -i '1i user root;' "$dir/nginx.conf"
  # An own session: Ctrl-C reaches this script, which stops it in order.
  PATH=$PATH:/usr/sbin setsid nginx -p "$dir" -e stderr -c "$dir/nginx.conf" &
  nginx=$!
  for _ in $(seq 100); do
    curl -sf -o /dev/null -r 0-0 "http://127.0.0.1:$port/demo.qcow2" && break
    sleep 0.05
  done
  set -- "http://127.0.0.1:$port/demo.qcow2"
fi

for i in 1 2; do
  mkdir "$dir/disk$i"
  printf '{"diskUUID":"scratch-%s"}' "$i" >"$dir/disk$i/longhorn-disk.cfg"
done
cat >"$dir/bim.toml" <<CONF
[node]
state_dir = "$dir/state"
[api]
listen = ["127.0.0.1:0"]
socket = "unix:$dir/bim.sock"
data_listen = "127.0.0.1:0"
[disks]
paths = ["$dir/disk1", "$dir/disk2"]
[log]
level = "warn"
CONF
setsid "$bim" daemon --config "$dir/bim.toml" &
daemon=$!
for _ in $(seq 200); do
  [ ! -s "$dir/state/endpoint.json" ] || break
  kill -0 "$daemon" 2>/dev/null || die "the daemon did not start"
  sleep 0.05
done
address=$(/usr/bin/python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["api"][0])' "$dir/state/endpoint.json")
export BIM_ADDRESS=$address

names=()
for url in "$@"; do
  name=${url%%[?#]*}; name=${name##*/}
  name=$(printf '%s' "$name" | tr -c 'A-Za-z0-9_.-' '-' | sed 's/^[^A-Za-z0-9]*//; s/\.\.*/./g' | cut -c1-60)
  [ -n "$name" ] || name=image
  while [[ " ${names[*]} " == *" $name "* ]]; do name="$name-2"; done
  names+=("$name")
  "$bim" image ensure "$name" --url "$url" >/dev/null
done
failed=0
for i in "${!names[@]}"; do
  url=${@:$((i + 1)):1}
  # The same again is a no-op; this one waits and shows the progress.
  "$bim" image ensure "${names[$i]}" --url "$url" --wait || failed=1
done
echo
"$bim" disk list
echo
"$bim" image list
for name in "${names[@]}"; do
  echo
  "$bim" image get "$name" | sed -n '/^DISK/,$p' | sed "s/^/$name  /"
done
cat <<TXT

The daemon runs in the foreground (API on $address). To try in another terminal:

  export BIM_ADDRESS=$address
  $bim image get ${names[0]}
  $bim image verify ${names[0]}
  /usr/bin/python3 $PWD/tests/tools/grpc_call.py $address bim.v1.ImageService/List '{}'

The last one is a generic reflection client; grpcurl works as well:
  grpcurl -plaintext $address bim.v1.ImageService/List

Ctrl-C stops the daemon$([ -z "$nginx" ] || echo ", nginx") and deletes the scratch disks.
TXT
[ "$failed" = 0 ] || echo "Not every image became ready: see above."
wait "$daemon"
