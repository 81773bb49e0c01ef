//! How long images that were replaced stay on the machine.
//!
//! When a tag moves, the image it meant before loses its name and keeps its room. The newest of them are kept, for a way back;
//! older ones are removed where nothing refers to them. The engine has the last word: it refuses to remove an image that any
//! container uses, running or not, and nothing here forces it.

use std::collections::BTreeSet;

use crate::engine::{Engine, EngineError, UnnamedImage};
use crate::image::{ImageId, ImageRef};

/// Remove what is beyond the `keep` newest unnamed images of each repository. What the engine refuses stays.
pub async fn sweep(
    engine: &dyn Engine,
    repositories: &BTreeSet<String>,
    keep: usize,
) -> Result<Vec<ImageId>, EngineError> {
    let unnamed = engine.unnamed_images().await?;
    let mut removed = Vec::new();
    for repository in repositories {
        for image in beyond(&unnamed, repository, keep) {
            match engine.remove_image(&image.id).await {
                Ok(()) => removed.push(image.id.clone()),
                Err(EngineError::Conflict { .. } | EngineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

/// The unnamed images of one repository and no other, newest first, without the first `keep`.
fn beyond<'a>(unnamed: &'a [UnnamedImage], repository: &str, keep: usize) -> Vec<&'a UnnamedImage> {
    let of_repository = |digest: &String| {
        let name = digest
            .split_once('@')
            .and_then(|(name, _)| name.parse::<ImageRef>().ok());
        name.is_some_and(|name| name.repository() == repository)
    };
    let mut images: Vec<&UnnamedImage> = unnamed
        .iter()
        .filter(|image| {
            !image.repo_digests.is_empty() && image.repo_digests.iter().all(of_repository)
        })
        .collect();
    images.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    images.into_iter().skip(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, created: i64, repositories: &[&str]) -> UnnamedImage {
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
    fn the_newest_stay_and_other_repositories_are_not_touched() {
        let unnamed = [
            image("oldest", 1, &["ghcr.io/a/b"]),
            image("newest", 3, &["ghcr.io/a/b"]),
            image("middle", 2, &["ghcr.io/a/b"]),
            image("other", 1, &["ghcr.io/a/c"]),
            image("both", 1, &["ghcr.io/a/b", "ghcr.io/a/c"]),
            image("built here", 1, &[]),
        ];
        let ids = |keep| {
            beyond(&unnamed, "ghcr.io/a/b", keep)
                .iter()
                .map(|it| it.id.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(1), ["middle", "oldest"]);
        assert_eq!(ids(3), Vec::<String>::new());
    }
}
