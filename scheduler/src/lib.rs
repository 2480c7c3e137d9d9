//! The unified scheduler of containers and virtual machines.
