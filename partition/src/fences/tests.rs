//! Fences in a table, and what they let through.
