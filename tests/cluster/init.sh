#!/bin/bash
# Process 1 of a node: gives it a file system, devices and a network of its own, then waits and reaps.
#
# Usage: init.sh ROOT NODE_ADDRESS API_ADDRESS API_PORT SERVICE_ADDRESS POD_RANGE CNI_PLUGINS
#
# POD_RANGE is that of all nodes of the cluster.
#
# Standard input is the lifeline: when its writer is gone, however it died, this process ends, and with it
# everything in its pid namespace. Nothing is ever written to the machine's own /dev, /etc, /opt, /run or /var.
set -euo pipefail

root=$1 node=$2 api=$3 api_port=$4 service=$5 pods=$6 cni_plugins=$7

# Folders that belong to this node alone, kept on disk where they can be looked at from outside.
folders="
  /etc/cdi /etc/cni/net.d /opt/cni/bin /run/cdi /run/containerd /run/netns /run/nri
  /var/lib/cni /var/lib/containerd /var/lib/kubelet /var/log/containers /var/log/pods"

# The tools go by the machine's file system; what they want to create goes to a layer in memory.
cover() {
  mkdir -p "$layers$1/upper" "$layers$1/work"
  mount -n -t overlay overlay -o "lowerdir=$1,upperdir=$layers$1/upper,workdir=$layers$1/work" "$1"
}

# `-n` keeps mount from making its own notes in the machine's /run.
file_systems() {
  mount -n --make-rshared / # the kubelet needs mounts that reach its containers
  layers=$root/.layers
  mkdir -p "$layers"
  mount -n -t tmpfs -o mode=700 tmpfs "$layers"
  for covered in /etc /opt /run /var/lib /var/log; do cover "$covered"; done
  for folder in $folders; do
    mkdir -p "$folder" "$root$folder"
    mount -n --bind "$root$folder" "$folder"
  done
  for plugin in "$cni_plugins"/*; do ln -sf "$plugin" /opt/cni/bin/; done
}

# A /dev of its own: what a test makes or removes there is a real device node, and nobody else sees it.
devices() {
  # The kubelet measures the file systems that it uses by their block devices, so those are copied.
  grep -o '^/dev/[^ ]*' /proc/mounts | sort -u | while read -r disk; do
    if [[ -b $disk ]]; then mkdir -p "$layers${disk%/*}" && cp -RL "$disk" "$layers$disk"; fi
  done
  mount -n -t tmpfs -o mode=755,size=64m tmpfs /dev
  if [[ -d $layers/dev ]]; then cp -a "$layers/dev/." /dev/; fi
  while read -r name major minor; do mknod -m 666 "/dev/$name" c "$major" "$minor"; done <<-NODES
	null 1 3
	zero 1 5
	full 1 7
	random 1 8
	urandom 1 9
	kmsg 1 11
	tty 5 0
	NODES
  mkdir /dev/pts /dev/shm /dev/crypto /dev/bridge-test
  mount -n -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts
  mount -n -t tmpfs -o mode=1777 tmpfs /dev/shm
  mount -n -t tmpfs -o mode=755 tmpfs /dev/crypto
  mount -n -t tmpfs -o mode=755 tmpfs /dev/bridge-test
  ln -s pts/ptmx /dev/ptmx
  ln -s /proc/self/fd /dev/fd
  ln -s fd/0 /dev/stdin
  ln -s fd/1 /dev/stdout
  ln -s fd/2 /dev/stderr
}

network() {
  ip link set lo up
  # The kubelet and the API server refuse loopback addresses; a bridge without ports serves as an interface, and
  # takes the cables to other nodes of the cluster.
  ip link add nodes type bridge
  ip addr add "$node/24" dev nodes
  ip link set nodes up
  ip route add default dev nodes
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # There is no kube-proxy; this is the one service address that pods and the daemon need.
  to_api=(-d "$service" -p tcp --dport 443 -j DNAT --to-destination "$api:$api_port")
  iptables -w -t nat -A PREROUTING "${to_api[@]}"
  iptables -w -t nat -A OUTPUT "${to_api[@]}"
  iptables -w -t nat -A POSTROUTING -s "$pods" ! -d "$pods" -j MASQUERADE
}

file_systems
devices
network
echo ready
read -r _ || true
