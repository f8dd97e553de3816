//! Pins on the image records of this containerd: set by pulls, named in heartbeats, taken back when told to.

use std::collections::HashMap;

use containerd_client::services::v1::{Image, ListImagesRequest, UpdateImageRequest};
use containerd_client::tonic::Code;
use prost_types::FieldMask;
use tokio::sync::Mutex;

use super::client::Client;
use super::names;
use super::pinned::{self, Changes, PINNED};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::pin::Pin;

/// Changes pins one after the other: containerd has no compare-and-set, and a pull that sets a pin must not cross with
/// a word that takes an earlier one back.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<()>);

impl Pins {
    /// Pins the image that has these names, and no other records by the same pin: what the reference meant before is
    /// held no longer.
    pub(super) async fn set(
        &self,
        client: &Client,
        pin: &Pin,
        names: &[String],
    ) -> Result<(), Failure> {
        let _alone = self.0.lock().await;
        for name in names {
            let record = names::get(client, name).await?.ok_or_else(|| {
                Failure::new(
                    FailureKind::RuntimeUnavailable,
                    format!("{name}: the image was removed before it was pinned"),
                )
            })?;
            change(client, &record, pinned::add(&record.labels, pin)).await?;
        }
        let before = held(client).await?.into_iter();
        for record in before.filter(|record| !names.contains(&record.name)) {
            let changes = pinned::remove(&record.labels, |held| held.is_same_hold(pin));
            change(client, &record, changes).await?;
        }
        Ok(())
    }

    /// Takes pins back, those of the same and of earlier generations.
    pub(super) async fn take_back(&self, client: &Client, pins: &[Pin]) -> Result<(), Failure> {
        let _alone = self.0.lock().await;
        for record in held(client).await? {
            let goes = |held: &Pin| pins.iter().any(|pin| held.goes_with(pin));
            change(client, &record, pinned::remove(&record.labels, goes)).await?;
        }
        Ok(())
    }
}

/// The pins there are, each once. None where something else than containerd listens, which has no image records.
pub(super) async fn all(client: &Client) -> Result<Vec<Pin>, Failure> {
    let records = held(client).await?;
    let pins = records
        .iter()
        .flat_map(|record| pinned::holds(&record.labels));
    let mut newest: HashMap<(String, String), Pin> = HashMap::new();
    for pin in pins {
        let hold = (pin.uid.clone(), pin.image.clone());
        let known = newest.entry(hold).or_insert_with(|| pin.clone());
        known.generation = known.generation.max(pin.generation);
    }
    Ok(newest.into_values().collect())
}

/// The records that pins of ours hold.
async fn held(client: &Client) -> Result<Vec<Image>, Failure> {
    let request = client.request(ListImagesRequest {
        filters: vec![format!("labels.\"{PINNED}\"")],
    });
    match Client::call(client.images().list(request)).await {
        Ok(answer) => Ok(answer.images),
        Err(status) if status.code() == Code::Unimplemented => Ok(Vec::new()),
        Err(status) => Err(client.failure("looking for pinned images", &status)),
    }
}

/// Changes labels of a record. One that has gone meanwhile is pinned no more anyway.
async fn change(client: &Client, record: &Image, changes: Changes) -> Result<(), Failure> {
    if changes.is_empty() {
        return Ok(());
    }
    let paths = changes.keys().map(|key| format!("labels.{key}")).collect();
    let request = client.request(UpdateImageRequest {
        image: Some(Image {
            name: record.name.clone(),
            labels: changes.into_iter().collect(),
            ..record.clone()
        }),
        update_mask: Some(FieldMask { paths }),
        source_date_epoch: None,
    });
    match Client::call(client.images().update(request)).await {
        Err(status) if status.code() != Code::NotFound => Err(client.failure(
            format_args!("pinning or unpinning {}", record.name),
            &status,
        )),
        _ => Ok(()),
    }
}
