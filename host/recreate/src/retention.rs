//! Removes old images, and decides how many replaced images stay on the machine.
//!
//! When a tag moves, its previous image loses its name and keeps its disk space. Refit keeps the newest of these images, for a
//! way back, and removes older ones if nothing refers to them. The engine has the last word: it refuses to remove an image that
//! any container uses, running or not, and Refit never forces it.

use std::collections::BTreeSet;

use refit_engine::{Engine, EngineError, UnnamedImage};
use refit_model::image::{ImageId, ImageRef};

use crate::image_records::{ImageRecord, ImageRecords};

/// Removes all but the `keep` newest unnamed images of each repository. Images that the engine refuses to remove stay.
///
/// The engine reports which repository an image came from; if it does not, `records` do. An image with an unknown repository
/// stays.
pub async fn sweep(
    engine: &dyn Engine,
    records: &ImageRecords,
    repositories: &BTreeSet<String>,
    keep: usize,
) -> Result<Vec<ImageId>, EngineError> {
    if repositories.is_empty() {
        return Ok(Vec::new());
    }
    let mut unnamed = Vec::new();
    for image in engine.unnamed_images().await? {
        let record = records.get(&image.id).await;
        unnamed.push(Candidate::new(image, record));
    }
    let mut removed = Vec::new();
    for repository in repositories {
        for image in select_surplus(&unnamed, repository, keep) {
            match engine.remove_image(&image.id).await {
                Ok(()) => removed.push(image.id.clone()),
                Err(EngineError::Conflict { .. } | EngineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

/// An image that no tag points to any more, and its known origin.
struct Candidate {
    id: ImageId,
    repositories: BTreeSet<String>,
    /// When the image was last replaced, in the order of the records; 0 if unknown.
    order: u64,
    created: i64,
}

impl Candidate {
    fn new(image: UnnamedImage, record: Option<ImageRecord>) -> Self {
        let order = record.as_ref().map_or(0, |record| record.order);
        let recorded = record.map(|record| record.repositories).unwrap_or_default();
        // A name that cannot be parsed stays in the list as a repository that matches no request: then the image does not
        // belong to our repository alone.
        let reported = image.repo_digests.iter().map(|digest| {
            let name = digest.split_once('@').map_or(digest.as_str(), |it| it.0);
            name.parse::<ImageRef>()
                .map_or_else(|_| digest.clone(), |name| name.repository())
        });
        let reported: BTreeSet<String> = reported.collect();
        Self {
            id: image.id,
            repositories: if reported.is_empty() {
                recorded
            } else {
                reported
            },
            order,
            created: image.created,
        }
    }

    /// Returns the sort key. The creation time that a builder wrote into an image can be anything; the order of replacements is
    /// reliable.
    fn sort_key(&self) -> (u64, i64, &ImageId) {
        (self.order, self.created, &self.id)
    }
}

/// Selects the unnamed images that belong to this repository alone, newest first, without the first `keep`.
fn select_surplus<'a>(
    unnamed: &'a [Candidate],
    repository: &str,
    keep: usize,
) -> Vec<&'a Candidate> {
    let is_alone = |image: &&Candidate| {
        image.repositories.len() == 1 && image.repositories.contains(repository)
    };
    let mut images: Vec<&Candidate> = unnamed.iter().filter(is_alone).collect();
    images.sort_by(|a, b| b.sort_key().cmp(&a.sort_key()));
    images.into_iter().skip(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, created: i64, repositories: &[&str]) -> Candidate {
        Candidate::new(unnamed(id, created, repositories), None)
    }

    fn unnamed(id: &str, created: i64, repositories: &[&str]) -> UnnamedImage {
        let digest = "sha256:".to_owned() + &"a".repeat(64);
        let repo_digests = repositories
            .iter()
            .map(|repository| format!("{repository}@{digest}"))
            .collect();
        UnnamedImage {
            id: ImageId::new(id),
            created,
            repo_digests,
        }
    }

    #[test]
    fn newest_images_and_other_repositories_stay() {
        let unnamed = [
            image("oldest", 1, &["ghcr.io/a/b"]),
            image("newest", 3, &["ghcr.io/a/b"]),
            image("middle", 2, &["ghcr.io/a/b"]),
            image("other", 1, &["ghcr.io/a/c"]),
            image("both", 1, &["ghcr.io/a/b", "ghcr.io/a/c"]),
            image("built here", 1, &[]),
        ];
        let ids = |keep| {
            select_surplus(&unnamed, "ghcr.io/a/b", keep)
                .iter()
                .map(|it| it.id.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(1), ["middle", "oldest"]);
        assert_eq!(ids(3), Vec::<String>::new());
    }

    #[test]
    fn image_without_digest_uses_recorded_repository() {
        let recorded = |id: &str, order, repositories: &[&str]| {
            let record = ImageRecord {
                id: ImageId::new(id),
                repositories: repositories.iter().map(|it| (*it).to_owned()).collect(),
                config: refit_model::container::Object::new(),
                content: None,
                order,
            };
            Candidate::new(unnamed(id, 0, &[]), Some(record))
        };
        let images = [
            recorded("first", 1, &["ghcr.io/a/b"]),
            recorded("third", 3, &["ghcr.io/a/b"]),
            recorded("second", 2, &["ghcr.io/a/b"]),
            recorded("both", 1, &["ghcr.io/a/b", "ghcr.io/a/c"]),
            // The builder's clock was ahead, and Refit has no record of the image.
            image("unrecorded", i64::MAX, &["ghcr.io/a/b"]),
        ];
        let ids: Vec<_> = select_surplus(&images, "ghcr.io/a/b", 1)
            .iter()
            .map(|it| it.id.as_str())
            .collect();
        assert_eq!(ids, ["second", "first", "unrecorded"]);
    }
}
