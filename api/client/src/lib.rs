//! The API client of controllers, schedulers and node agents: tenant-aware, typed, over HTTP or in process.
