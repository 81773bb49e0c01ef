//! Whether the engine's disk has room for a pull. Looked at before, where it can be: a disk that runs full stops more than Refit.
//!
//! It can be where the engine is on this machine and says where it keeps its images. What cannot be found out holds nothing back.

use std::path::Path;
use std::time::Duration;

use refit_engine::PullError;
use refit_model::container::Image;
use refit_model::image::{ImageRef, Platform};

use super::live::EngineContext;

/// A layer is downloaded, and then unpacked to about twice its size.
const TIMES: u64 = 3;
/// With this much room left nobody is asked for sizes: registries count such a question as a pull.
const ENOUGH_BYTES: u64 = 32 << 30;
/// A registry that is slow to say the size holds nothing up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
#[error(
    "it takes about {} ({TIMES} times the {} that its registry would send), and {} is left in `{folder}`",
    gigabytes(.size.saturating_mul(TIMES)), gigabytes(*.size), gigabytes(*.free)
)]
struct NoRoom {
    size: u64,
    free: u64,
    folder: String,
}

/// An error where the image does not fit. `here` is what the reference means on this machine: its layers are not sent again.
pub(super) async fn check(
    workshop: &EngineContext,
    image: &ImageRef,
    here: Option<&Image>,
) -> Result<(), PullError> {
    let Ok(Some(folder)) = workshop.engine.image_folder().await else {
        return Ok(());
    };
    let Some(free) = free_bytes(&folder).filter(|free| *free < ENOUGH_BYTES) else {
        return Ok(());
    };
    let asked = tokio::time::timeout(PATIENCE, download_size(workshop, image, here));
    let Ok(Some(size)) = asked.await else {
        return Ok(());
    };
    if size.saturating_mul(TIMES) <= free {
        return Ok(());
    }
    let folder = folder.display().to_string();
    Err(PullError::NoSpace {
        image: image.clone(),
        source: Box::new(NoRoom { size, free, folder }),
    })
}

/// `None` where nobody says.
async fn download_size(
    workshop: &EngineContext,
    image: &ImageRef,
    here: Option<&Image>,
) -> Option<u64> {
    let platform = match &workshop.platform {
        Some(platform) => platform.clone(),
        None => {
            let version = workshop.engine.version().await.ok()?;
            version.platform.parse::<Platform>().ok()?
        }
    };
    let mut layers = workshop.digests.layers(image, &platform).await.ok()?;
    if let Some(digest) = here.and_then(|here| here.digests_in(image).next()) {
        let old = format!("{}@{digest}", image.repository()).parse().ok()?;
        let old = workshop.digests.layers(&old, &platform).await;
        let old = old.unwrap_or_default();
        layers.retain(|digest, _| !old.contains_key(digest));
    }
    Some(
        layers
            .values()
            .fold(0, |sum, size| sum.saturating_add(*size)),
    )
}

/// For whoever is not root: what root alone may fill is not counted.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let told = rustix::fs::statvfs(folder).ok()?;
    Some(told.f_bavail.saturating_mul(told.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

fn gigabytes(bytes: u64) -> String {
    // Tenths, in whole numbers.
    let tenths = bytes / (100 << 20);
    match tenths {
        0 => format!("{} MB", bytes >> 20),
        _ => format!("{}.{} GB", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_for_people() {
        let told = [0, 5 << 20, 100 << 20, 1000 << 20, 12_345 << 20].map(gigabytes);
        assert_eq!(told, ["0 MB", "5 MB", "0.1 GB", "1.0 GB", "12.3 GB"]);
    }

    #[cfg(unix)]
    #[test]
    fn folder_that_is_not_here_has_no_size() {
        assert_eq!(free_bytes(Path::new("/nowhere/at/all")), None);
        assert!(free_bytes(Path::new("/")).is_some());
    }
}
