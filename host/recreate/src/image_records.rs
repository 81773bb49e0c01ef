//! A record of images that containers were made from: what each one's configuration is, and which repositories it came from.
//!
//! An engine may lose both when a tag moves. Docker 26 with the containerd image store cannot inspect the old image from then
//! on, although containers still run it; Docker 28 can, but no longer says where the image came from. So Refit writes both down
//! while the engine still knows them: before a pull, after it, and at each check for updates.
//!
//! The records live in the state folder, one file each, so that every Refit on the machine shares them and a restart keeps them.
//! Where the folder cannot be written, they last as long as the process. Their number and their size are bounded.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use refit_model::container::{Image, Object};
use refit_model::image::{ImageId, ImageRef};
use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};

/// Several times the images of a large machine. The oldest records go first.
const RECORDS_MAX: usize = 1000;
/// A configuration has a few kilobytes; an image with documents in its labels gets no record.
const RECORD_BYTES_MAX: usize = 256 * 1024;

/// The recorded facts about one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub id: ImageId,
    /// Registry and repository, as [`ImageRef::repository`] writes them.
    pub repositories: BTreeSet<String>,
    /// The configuration that the image gives to every container created from it.
    pub config: Object,
    /// As [`Image::content`]: compares two images whose ids may differ only because of their index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Grows with each record that is written: later means used later. No clock is involved.
    pub order: u64,
}

/// The records of one engine. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ImageRecords {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    records: Mutex<HashMap<ImageId, ImageRecord>>,
    folder: Option<PathBuf>,
    has_warned: AtomicBool,
}

impl ImageRecords {
    /// Creates records in a folder below the state folder `state`. That folder is created when it is needed.
    pub fn in_folder(state: &Path) -> Self {
        Self {
            shared: Arc::new(Shared {
                folder: Some(state.join("images")),
                ..Shared::default()
            }),
        }
    }

    /// Records an image that the engine shows under this reference. If nothing about it is new, this only reads memory.
    pub async fn record(&self, reference: &ImageRef, image: &Image) {
        self.write(reference, image, false).await;
    }

    /// Records that the reference points to another image from now on: this image counts as the latest that was replaced.
    pub async fn record_replaced(&self, reference: &ImageRef, image: &Image) {
        self.write(reference, image, true).await;
    }

    pub async fn get(&self, id: &ImageId) -> Option<ImageRecord> {
        if let Some(record) = self.lock().get(id) {
            return Some(record.clone());
        }
        let (records, id) = (self.clone(), id.clone());
        let record = tokio::task::spawn_blocking(move || records.load(&id)).await;
        record.ok().flatten()
    }

    async fn write(&self, reference: &ImageRef, image: &Image, again: bool) {
        let repository = reference.repository();
        let is_known = |record: &ImageRecord| {
            record.repositories.contains(&repository)
                && record.config == image.config
                && record.content == image.content
        };
        if !again && self.lock().get(&image.id).is_some_and(is_known) {
            return;
        }
        let (records, image) = (self.clone(), image.clone());
        // Another process may have written the record since the check above.
        let written = tokio::task::spawn_blocking(move || {
            let mut record = records.load(&image.id).unwrap_or_else(|| ImageRecord {
                id: image.id.clone(),
                repositories: BTreeSet::new(),
                config: Object::new(),
                content: None,
                order: 0,
            });
            let is_new = record.repositories.insert(repository)
                || record.config != image.config
                || record.content != image.content;
            if is_new || again {
                record.config = image.config;
                record.content = image.content;
                records.store(record);
            }
        });
        let _ = written.await;
    }

    fn load(&self, id: &ImageId) -> Option<ImageRecord> {
        let folder = self.shared.folder.as_ref()?;
        let bytes = fs::read(folder.join(file_name(id)?)).ok()?;
        let record: ImageRecord = serde_json::from_slice(&bytes).ok()?;
        if record.id != *id {
            return None;
        }
        insert_bounded(&mut self.lock(), record.clone());
        Some(record)
    }

    fn store(&self, mut record: ImageRecord) {
        let on_disk = self.shared.folder.as_deref().map(read_orders);
        let on_disk = on_disk.unwrap_or_default();
        let mut records = self.lock();
        let in_memory = records.values().map(|record| record.order);
        let latest = in_memory.chain(on_disk.iter().map(|(order, _)| *order));
        record.order = latest.max().unwrap_or_default().saturating_add(1);
        let Ok(bytes) = serde_json::to_vec(&record) else {
            return;
        };
        let Some(name) = file_name(&record.id).filter(|_| bytes.len() <= RECORD_BYTES_MAX) else {
            return;
        };
        insert_bounded(&mut records, record);
        drop(records);
        let Some(folder) = &self.shared.folder else {
            return;
        };
        let written = atomic_file::folder(folder)
            .and_then(|()| atomic_file::replace(&folder.join(&name), &bytes));
        match written {
            Ok(()) => prune(on_disk, folder, &name),
            Err(error) => self.warn(folder, &error),
        }
    }

    /// Warns once: if one write fails, later writes fail too.
    fn warn(&self, folder: &Path, error: &io::Error) {
        if !self.shared.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                folder = %folder.display(),
                "cannot write image records, a restart forgets them: {error}"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, ImageRecord>> {
        let records = &self.shared.records;
        records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a record in memory. If there are too many, the oldest one is dropped.
fn insert_bounded(records: &mut HashMap<ImageId, ImageRecord>, record: ImageRecord) {
    records.insert(record.id.clone(), record);
    if records.len() > RECORDS_MAX
        && let Some(oldest) = records.values().min_by_key(|record| record.order)
    {
        let oldest = oldest.id.clone();
        records.remove(&oldest);
    }
}

/// Returns the file name of a well-formed id: no other text becomes part of a path.
fn file_name(id: &ImageId) -> Option<String> {
    let (algorithm, hex) = id.as_str().split_once(':').unwrap_or(("", id.as_str()));
    let is_hex = !hex.is_empty() && hex.len() <= 128 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let is_word = algorithm.len() <= 16 && algorithm.bytes().all(|b| b.is_ascii_alphanumeric());
    (is_hex && is_word).then(|| format!("{algorithm}-{hex}.json"))
}

/// Reads the order of each record in the folder. An unreadable record counts as the oldest.
fn read_orders(folder: &Path) -> Vec<(u64, PathBuf)> {
    #[derive(Deserialize)]
    struct Ordered {
        order: u64,
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_some_and(|it| it == "json"));
    let read = |path: PathBuf| {
        let order = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Ordered>(&bytes).ok())
            .map_or(0, |ordered| ordered.order);
        (order, path)
    };
    // Read enough to find surplus records, but never read a very large folder to its end.
    records.take(2 * RECORDS_MAX).map(read).collect()
}

/// Removes the oldest records beyond the limit. `written` is the newest.
fn prune(mut before: Vec<(u64, PathBuf)>, folder: &Path, newest: &str) {
    before.retain(|(_, path)| *path != folder.join(newest));
    let surplus = (before.len() + 1).saturating_sub(RECORDS_MAX);
    before.sort();
    for (_, path) in before.into_iter().take(surplus) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image(id: &str) -> Image {
        Image {
            id: ImageId::new(format!("sha256:{id}")),
            repo_digests: vec![],
            os: "linux".into(),
            architecture: "amd64".into(),
            config: json!({ "Env": [format!("ID={id}")] })
                .as_object()
                .cloned()
                .unwrap(),
            content: None,
        }
    }

    fn reference(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn recorded_image_is_known_to_another_process() {
        let state = tempfile::tempdir().unwrap();
        let (one, other) = (
            ImageRecords::in_folder(state.path()),
            ImageRecords::in_folder(state.path()),
        );
        one.record(&reference("ghcr.io/a/b:1"), &image("aa")).await;
        one.record(&reference("ghcr.io/a/c"), &image("aa")).await;
        let record = other.get(&image("aa").id).await.unwrap();
        assert_eq!(record.config, image("aa").config);
        let repositories = ["ghcr.io/a/b", "ghcr.io/a/c"].map(str::to_owned);
        assert_eq!(record.repositories, BTreeSet::from(repositories));
        assert_eq!(other.get(&image("bb").id).await, None);
    }

    #[tokio::test]
    async fn replaced_last_is_latest() {
        let state = tempfile::tempdir().unwrap();
        let records = ImageRecords::in_folder(state.path());
        let app = reference("ghcr.io/a/b");
        for id in ["aa", "bb"] {
            records.record(&app, &image(id)).await;
        }
        // The tag moved back to the first image, and away from it again; another process recorded that.
        let other = ImageRecords::in_folder(state.path());
        other.record_replaced(&app, &image("aa")).await;
        let order = async |id: &str| {
            let records = ImageRecords::in_folder(state.path());
            records.get(&image(id).id).await.unwrap().order
        };
        assert!(order("aa").await > order("bb").await);
        // Nothing about it is new.
        let before = order("bb").await;
        records.record(&app, &image("bb")).await;
        assert_eq!(order("bb").await, before);
    }

    #[tokio::test]
    async fn read_only_folder_records_in_memory() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("images"), "in the way").unwrap();
        let records = ImageRecords::in_folder(state.path());
        records.record(&reference("a"), &image("aa")).await;
        assert!(records.get(&image("aa").id).await.is_some());
    }

    #[tokio::test]
    async fn oldest_records_go_beyond_the_bound() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("images");
        atomic_file::folder(&folder).unwrap();
        for number in 0..RECORDS_MAX + 5 {
            let path = folder.join(format!("sha256-{number:064x}.json"));
            fs::write(path, format!(r#"{{"order":{}}}"#, number + 1)).unwrap();
        }
        let records = ImageRecords::in_folder(state.path());
        records.record(&reference("a"), &image("aa")).await;
        let left = read_orders(&folder);
        assert_eq!(left.len(), RECORDS_MAX);
        assert_eq!(left.iter().map(|(order, _)| *order).min(), Some(7));
    }

    #[test]
    fn only_an_id_becomes_a_file_name() {
        let name = |id: &str| file_name(&ImageId::new(id));
        assert_eq!(name("sha256:0a").as_deref(), Some("sha256-0a.json"));
        assert_eq!(name("0a").as_deref(), Some("-0a.json"));
        for id in ["", "sha256:", "sha256:../x", "../a:00", "sha256:0g"] {
            assert_eq!(name(id), None, "{id}");
        }
    }

    #[tokio::test]
    async fn oversized_configuration_is_not_recorded() {
        let records = ImageRecords::default();
        let mut large = image("aa");
        let label = "x".repeat(RECORD_BYTES_MAX);
        large
            .config
            .insert("Labels".into(), json!({ "large": label }));
        records.record(&reference("a"), &large).await;
        assert_eq!(records.get(&large.id).await, None);
    }
}
