//! Checks before a pull whether the engine's disk has room for the image, because a full disk stops more than Refit.
//!
//! The check needs an engine on this machine that reports its image folder. If the free space or the size is unknown, the pull
//! proceeds.

use std::path::Path;
use std::time::Duration;

use refit_engine::PullError;
use refit_model::container::Image;
use refit_model::image::{ImageRef, Platform};

use super::live::EngineContext;

/// The disk space that a layer needs, as a multiple of its download: the engine downloads it and unpacks it to about twice its
/// size.
const SPACE_FACTOR: u64 = 3;
/// Refit requests no sizes if this much room is left, because registries count such a request as a pull.
const ENOUGH_BYTES: u64 = 32 << 30;
/// How long Refit waits for the size. A slow registry does not delay the pull further.
const SIZE_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why an image was not pulled.
#[derive(Debug, thiserror::Error)]
#[error(
    "it takes about {} ({SPACE_FACTOR} times the {} that its registry would send), and {} is left in `{folder}`",
    gigabytes(.size.saturating_mul(SPACE_FACTOR)), gigabytes(*.size), gigabytes(*.free)
)]
struct NoRoom {
    size: u64,
    free: u64,
    folder: String,
}

/// Return an error if the image does not fit. `here` is the local image under this reference: its layers are not downloaded again.
pub(super) async fn check(
    context: &EngineContext,
    image: &ImageRef,
    here: Option<&Image>,
) -> Result<(), PullError> {
    let Ok(Some(folder)) = context.engine.image_folder().await else {
        return Ok(());
    };
    let Some(free) = free_bytes(&folder).filter(|free| *free < ENOUGH_BYTES) else {
        return Ok(());
    };
    let size_request = tokio::time::timeout(SIZE_TIMEOUT, download_size(context, image, here));
    let Ok(Some(size)) = size_request.await else {
        return Ok(());
    };
    if size.saturating_mul(SPACE_FACTOR) <= free {
        return Ok(());
    }
    let folder = folder.display().to_string();
    Err(PullError::NoSpace {
        image: image.clone(),
        source: Box::new(NoRoom { size, free, folder }),
    })
}

/// The bytes to download, or `None` if they are unknown.
async fn download_size(
    context: &EngineContext,
    image: &ImageRef,
    here: Option<&Image>,
) -> Option<u64> {
    let platform = match &context.platform {
        Some(platform) => platform.clone(),
        None => {
            let version = context.engine.version().await.ok()?;
            version.platform.parse::<Platform>().ok()?
        }
    };
    let mut layers = context.digests.layers(image, &platform).await.ok()?;
    if let Some(digest) = here.and_then(|here| here.digests_in(image).next()) {
        let old = format!("{}@{digest}", image.repository()).parse().ok()?;
        let old = context.digests.layers(&old, &platform).await;
        let old = old.unwrap_or_default();
        layers.retain(|digest, _| !old.contains_key(digest));
    }
    Some(
        layers
            .values()
            .fold(0, |sum, size| sum.saturating_add(*size)),
    )
}

/// The bytes that are free for users other than root. Blocks that are reserved for root do not count.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let filesystem = rustix::fs::statvfs(folder).ok()?;
    Some(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

fn gigabytes(bytes: u64) -> String {
    // Tenths of a gigabyte, in whole numbers.
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
        let filesystem = [0, 5 << 20, 100 << 20, 1000 << 20, 12_345 << 20].map(gigabytes);
        assert_eq!(filesystem, ["0 MB", "5 MB", "0.1 GB", "1.0 GB", "12.3 GB"]);
    }

    #[cfg(unix)]
    #[test]
    fn folder_that_is_not_here_has_no_size() {
        assert_eq!(free_bytes(Path::new("/nowhere/at/all")), None);
        assert!(free_bytes(Path::new("/")).is_some());
    }
}
