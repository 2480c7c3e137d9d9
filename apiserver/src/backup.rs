//! `GET /insula/backup`: everything that all partitions hold, for the platform's administrators.
//!
//! The answer is an archive (`insula_partition::backup`), made while it is read. One that broke
//! off has no end, which whoever checks it sees.

use std::io;

use http::{HeaderValue, Response, header};
use insula_partition::backup::take;

use crate::{
    Server,
    body::{Body, channel},
    error::chain,
};

/// The path.
pub(crate) const PATH: [&str; 2] = ["insula", "backup"];

impl Server {
    pub(crate) fn backup(&self) -> Response<Body> {
        let (sender, body) = channel();
        let partitions = self.partitions.clone();
        self.tasks.spawn(async move {
            let write = |piece| {
                let sender = sender.clone();
                async move {
                    match sender.send(piece).await {
                        true => Ok(()),
                        false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
                    }
                }
            };
            match Box::pin(take(&partitions, write)).await {
                Ok(objects) => tracing::info!(objects, "a backup was taken"),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "a backup broke off");
                }
            }
        });
        let mut response = Response::new(body);
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
