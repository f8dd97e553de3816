//! Waiting until the CRI plugin has seen a new image. It learns of images by events, a few
//! milliseconds after they get their names; a pod that is started on our word must not come sooner.

use std::time::Duration;

use k8s_cri::v1::{ImageSpec, ImageStatusRequest};
use tokio::time::{Instant, sleep};

use super::client::Client;
use crate::domain::image::Digest;

/// The namespace whose images the CRI plugin looks at (`constants.K8sContainerdNamespace`).
pub(super) const CRI_NAMESPACE: &str = "k8s.io";
/// How long the plugin may take. Beyond, the image is there all the same, and kubelet asks again.
const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// How often it is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until CRI finds the image of this configuration under `name`.
pub(super) async fn wait_until_seen(client: &Client, name: &str, config: &Digest) {
    if !client.is_in_namespace(CRI_NAMESPACE) {
        return;
    }
    let deadline = Instant::now() + SEEN_LIMIT;
    let mut images = client.cri_images();
    loop {
        // After the last wait it is looked once more: it may be this process that was held up.
        let is_last = Instant::now() >= deadline;
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: name.to_owned(),
                ..ImageSpec::default()
            }),
            verbose: false,
        };
        match Client::call(images.image_status(request)).await {
            Ok(answer) => {
                let seen = answer.image.map(|image| image.id);
                if seen.as_deref() == Some(config.as_str()) {
                    return;
                }
            }
            // A containerd without the plugin, or with one that is not ready: nobody waits for it.
            Err(status) => {
                tracing::debug!(%status, "the CRI plugin does not answer");
                return;
            }
        }
        if is_last {
            tracing::warn!(
                name,
                "the CRI plugin has not seen the image after {SEEN_LIMIT:?}"
            );
            return;
        }
        sleep(ASK_INTERVAL).await;
    }
}
