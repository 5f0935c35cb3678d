#!/usr/bin/env bash
# Shows a pod from an image's pull to its removal, through the CRI, with everything real: the daemon, crictl, a
# registry on loopback. It ends with an error at the first thing that is not as it should be, and removes all.
set -euo pipefail
cd "$(dirname "$0")/.."
source hack/lib.sh
export LC_ALL=C # one sorting order for all

readonly image=registry.k8s.io/gantry/demo:1 bridge=gtdemo0 subnet=10.214.0.0/24 port=18080 cgroup=/gantry-demo
dir='' daemon='' registry=''

step() { printf '\n== %s\n' "$*"; }
show() { sed 's/^/   /'; }
fail() { printf '\n   FAILED: %s\n' "$*" >&2 && exit 1; }

# expect WHAT GOT PATTERN: GOT is shown and has to match.
expect() {
	printf '%s\n' "$2" | show
	# shellcheck disable=SC2053 # a pattern is meant
	[[ $2 == $3 ]] || fail "$1: wanted a match for: $3"
}

crictl() { bin/crictl --config "$dir/crictl.yaml" "$@"; }

# until_true WHAT COMMAND...: repeats the command for up to ten seconds.
until_true() {
	local what=$1 i
	shift
	for ((i = 0; i < 200; i++)); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.05
	done
	fail "in vain waited until $what"
}

start_daemon() {
	bin/gantry serve --config "$dir/config.toml" --root "$dir/root" --run "$dir/run" --socket "$dir/run/gantry.sock" \
		--cni-conf-dir "$dir/net.d" --cni-bin-dir "$dir/cni-bin" --registry-config-dir "$dir/certs.d" \
		--runtime "runc=$runc" --default-runtime runc --bridge $bridge --subnet $subnet >>"$dir/gantry.log" 2>&1 &
	daemon=$!
	until_true "the daemon is ready" ready
}

ready() { [[ $(crictl info | grep -c '"status": true') == 2 ]]; }

stop_daemon() {
	kill -TERM "$daemon"
	wait "$daemon" || fail "the daemon ended with status $?"
	daemon=''
}

# objects lists the machine's mounts, links, nftables tables and elements, and the pod's cgroups.
objects() { bin/list "$dir" | awk -v own="$cgroup" '!/^(file|cgroup) / || (/^cgroup / && index($0, own))'; }

# left_over lists what the pod brought and is still there (what others made on this machine meanwhile is not looked
# at), and processes by the folder in their command lines or by the containers' ids in their cgroups.
left_over() {
	objects | comm -12 "$dir/made" -
	pgrep -a -f "$dir" | grep -v "^$registry "
	grep -l -e "$web" -e "$clock" /proc/[0-9]*/cgroup 2>/dev/null
	true
}

clean_up() {
	local code=$?
	trap - EXIT
	set +e
	if ((code)) && [[ -n $dir ]]; then
		printf '\nThe daemon'\''s log ends:\n'
		tail -n 20 "$dir/gantry.log" | show
		[[ -n $daemon ]] && crictl rmp --all --force >/dev/null 2>&1
	fi
	[[ -n $daemon ]] && kill -TERM "$daemon" 2>/dev/null && wait "$daemon"
	[[ -n $registry ]] && kill "$registry" 2>/dev/null && wait "$registry" 2>/dev/null
	[[ -n $dir ]] && rm -rf --one-file-system "$dir"
	exit $code
}

need_root
step "What this needs"
hack/install-deps.sh
echo "building gantry"
hack/build.sh
hack/build.sh crictl
CGO_ENABLED=0 go build -o bin/ ./test/harness/list
CGO_ENABLED=0 go build -o bin/testregistry ./test/images/serve
runc=$(find_runc)
bin/gantry version | show
"$runc" --version | awk 'NR == 1' | show

trap clean_up EXIT
dir=$(mktemp -d /tmp/gantry-demo-XXXXXX)
mkdir -p "$dir/logs" "$dir/net.d"
: >"$dir/config.toml"
printf 'runtime-endpoint: unix://%s/run/gantry.sock\ntimeout: 10\n' "$dir" >"$dir/crictl.yaml"
objects >"$dir/before"

step "A registry on loopback, with images made on the spot from busybox"
bin/testregistry -listen 127.0.0.1:0 -mirrors "$dir/certs.d" >"$dir/registry.log" &
registry=$!
until_true "the registry serves" grep -q serving "$dir/registry.log"
show <"$dir/registry.log"

step "gantry serve, with everything beneath $dir"
start_daemon
crictl version | show

step "crictl pull $image"
expect "the pull" "$(crictl pull $image)" '*sha256:*'
crictl images | show

step "A pod with two containers: a web server and a clock"
readonly own_pids='"security_context": {"namespace_options": {"pid": 1}}'
readonly labels='"labels": {"io.kubernetes.pod.name": "hello", "io.kubernetes.pod.namespace": "demo"}'
cat >"$dir/pod.json" <<JSON
{"metadata": {"name": "hello", "namespace": "demo", "uid": "demo-1"}, "hostname": "hello", "log_directory": "$dir/logs",
 "port_mappings": [{"container_port": 8080, "host_port": $port}], "linux": {"cgroup_parent": "$cgroup", $own_pids}}
JSON
cat >"$dir/web.json" <<JSON
{"metadata": {"name": "web"}, "image": {"image": "$image"}, "log_path": "web.log", $labels, "linux": {$own_pids}}
JSON
cat >"$dir/clock.json" <<JSON
{"metadata": {"name": "clock"}, "image": {"image": "$image"}, "log_path": "clock.log", $labels, "linux": {$own_pids},
 "command": ["sh", "-c", "i=0; while sleep 0.2; do i=\$((i+1)); echo tick \$i; done"]}
JSON
began=${EPOCHREALTIME/./}
pod=$(crictl runp "$dir/pod.json")
web=$(crictl create "$pod" "$dir/web.json" "$dir/pod.json")
clock=$(crictl create "$pod" "$dir/clock.json" "$dir/pod.json")
crictl start "$web" "$clock" >/dev/null
printf '   running after %d ms (four runs of crictl)\n' $(((${EPOCHREALTIME/./} - began) / 1000))

step "crictl pods; crictl ps"
expect "the pod" "$(crictl pods)" '*Ready*hello*'
expect "the containers" "$(crictl ps)" '*Running*clock*Running*web*'

step "crictl exec -s (in the web server's container)"
expect "the exec" "$(crictl exec -s "$web" sh -c 'echo "I am $(hostname), process 1 is $(cat /proc/1/comm)"')" 'I am hello, process 1 is httpd*'

step "Its page, from this host: through the pod's address and through host port $port"
ip=$(crictl inspectp --output go-template --template '{{.status.network.ip}}' "$pod")
fetch() { # with nothing but bash: HOST PORT
	(
		exec 3<>"/dev/tcp/$1/$2"
		printf 'GET / HTTP/1.0\r\n\r\n' >&3
		timeout 5 sed '1,/^\r$/d' <&3
	)
}
until_true "the web server answers" fetch "$ip" 8080
expect "http://$ip:8080/" "http://$ip:8080/ $(fetch "$ip" 8080)" '*Hello from a Gantry pod*'
expect "http://127.0.0.1:$port/" "http://127.0.0.1:$port/ $(fetch 127.0.0.1 $port)" '*Hello from a Gantry pod*'

step "crictl exec -i (three words through wc) and crictl port-forward"
expect "the exec" "$(echo three small words | crictl exec -i "$web" wc -w)" 3
bin/crictl --config "$dir/crictl.yaml" port-forward "$pod" 0:8080 >"$dir/forward.log" 2>&1 &
forward=$!
until_true "crictl forwards" grep -q '^Forwarding from 127' "$dir/forward.log"
forwarded=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$dir/forward.log")
expect "the forwarded page" "http://127.0.0.1:$forwarded/ $(fetch 127.0.0.1 "$forwarded")" '*Hello from a Gantry pod*'
kill "$forward"
wait "$forward" 2>/dev/null || true

step "crictl logs (of the web server, then of the clock)"
ticks() { crictl logs "$clock" | grep -c tick; }
three_ticks() { (($(ticks) >= 3)); }
until_true "the clock ticks" three_ticks
expect "the web server's log" "$(crictl logs --tail 3 "$web" 2>&1)" '*response:200*'
expect "the clock's log" "$(crictl logs --tail 3 "$clock")" 'tick *'

step "The daemon stops; the pod does not"
before=$(ticks)
stop_daemon
if crictl ps >/dev/null 2>&1; then fail "a stopped daemon answers"; fi
echo "the daemon is gone; the clock was at tick $before" | show
ticks_in_file() { grep -c tick "$dir/logs/clock.log"; }
went_on() { (($(ticks_in_file) >= before + 3)); }
until_true "the clock ticks on without the daemon" went_on
expect "the log file" "$(tail -n 1 "$dir/logs/clock.log")" '* stdout F tick *'
expect "http://127.0.0.1:$port/" "http://127.0.0.1:$port/ $(fetch 127.0.0.1 $port)" '*Hello from a Gantry pod*'

step "The daemon starts again and knows everything"
start_daemon
expect "the containers" "$(crictl ps)" '*Running*clock*Running*web*'

step "All is removed"
objects | comm -13 "$dir/before" - >"$dir/made"
printf '%s\n' "$(wc -l <"$dir/made") mounts, links, cgroups and the like are there for the pod" | show
grep -q "^mount .*/$pod/" "$dir/made" || fail "the search for leftovers does not see a running pod"
crictl stopp "$pod" | show
crictl rmp "$pod" | show
crictl rmi $image | show
expect "pods" "pods: $(crictl pods -q | wc -l), containers: $(crictl ps -a -q | wc -l), images: $(crictl images -q | wc -l)" \
	'pods: 0, containers: 0, images: 0'
stop_daemon
for ((i = 0; i < 100; i++)); do # the supervisor ends by itself when it has been idle for five seconds
	left=$(left_over)
	if [[ -z $left ]]; then break; fi
	sleep 0.1
done
[[ -z $left ]] || fail "left behind: $left"
echo "no process, mount, link, nftables table or cgroup is left" | show
printf '\nDone: all of it as it should be.\n'
