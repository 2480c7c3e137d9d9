//! The HTTP front: authentication, authorization, admission, registry, watch.
