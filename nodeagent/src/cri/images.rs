//! The images that the runtime has, and fetching others.

use super::{
    client::{LOOK, RuntimeClient},
    error::RuntimeError,
    v1,
};

/// An image as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRef {
    /// What names this image to the runtime.
    pub id: String,
    /// `name@sha256:...` if the image came from a registry, else its id.
    pub digest: String,
    /// The user it runs as by default, if the image says so as a number.
    pub uid: Option<i64>,
    /// The user it runs as by default, if the image says so as a name.
    pub username: String,
    pub size: u64,
}

impl RuntimeClient {
    pub(crate) async fn list_images(&self) -> Result<Vec<v1::Image>, RuntimeError> {
        let request = v1::ListImagesRequest {};
        Ok(self
            .call(
                "ListImages",
                LOOK,
                Box::pin(async move { self.images().list_images(request).await }),
            )
            .await?
            .images)
    }

    /// The image of that name if the runtime has it.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<ImageRef>, RuntimeError> {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        let answer = self
            .call(
                "ImageStatus",
                LOOK,
                Box::pin(async move { self.images().image_status(request).await }),
            )
            .await?;
        Ok(answer.image.map(|image| ImageRef {
            digest: image.repo_digests.into_iter().next().unwrap_or_else(|| image.id.clone()),
            id: image.id,
            uid: image.uid.map(|uid| uid.value),
            username: image.username,
            size: image.size,
        }))
    }

    /// Fetches an image. No limit: how long that takes is between registry and network, and the
    /// runtime gives up by itself when nothing more arrives.
    pub(crate) async fn pull_image(
        &self,
        name: &str,
        auth: Option<v1::AuthConfig>,
    ) -> Result<(), RuntimeError> {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, auth, sandbox_config: None };
        let answer = self.images().pull_image(request).await;
        answer.map(drop).map_err(|status| self.error("PullImage", status))
    }
}
