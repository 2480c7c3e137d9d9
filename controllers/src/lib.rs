//! The workload controller manager.
