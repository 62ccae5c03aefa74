//go:build tools

// Package tools names the programs under and beside a Kubernetes node, so that this module pins them.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "go.etcd.io/etcd/server/v3"
	_ "sigs.k8s.io/kustomize/kustomize/v5"
)
