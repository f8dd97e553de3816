//! The image service of a CRI runtime, as kubelet and `crictl` use it.

use std::path::Path;

use containerd_client::tonic::Status;
use containerd_client::tonic::transport::Channel;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{
    Image, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
};

/// A client of one runtime.
#[derive(Debug, Clone)]
pub struct Cri(ImageServiceClient<Channel>);

impl Cri {
    /// Connects to the runtime's socket.
    pub async fn connect(socket: &Path) -> Result<Self, String> {
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|error| format!("{}: {error:?}", socket.display()))?;
        Ok(Self(ImageServiceClient::new(channel)))
    }

    /// All images: what `crictl images` shows.
    pub async fn list_images(&self) -> Result<Vec<Image>, Status> {
        Ok(self
            .0
            .clone()
            .list_images(ListImagesRequest { filter: None })
            .await?
            .into_inner()
            .images)
    }

    /// One image by any of its names; `None` is what makes kubelet pull.
    pub async fn image_status(&self, name: &str) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        Ok(self
            .0
            .clone()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    /// Pulls without credentials; the answer is the image's id.
    pub async fn pull_image(&self, name: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(spec(name)),
            auth: None,
            sandbox_config: None,
        };
        Ok(self
            .0
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// Removes the image and all its names.
    pub async fn remove_image(&self, name: &str) -> Result<(), Status> {
        self.0
            .clone()
            .remove_image(RemoveImageRequest {
                image: Some(spec(name)),
            })
            .await?;
        Ok(())
    }
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}
