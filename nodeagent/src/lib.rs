//! Pods on this node: CRI runtimes, volumes, logs, exec.
