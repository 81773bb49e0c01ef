//! A policy in a file, with a signature file next to it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::signature::SIGNATURE_BYTES_MAX;
use super::{Artifact, ArtifactError};

/// Reads `policy.wasm` and, if it exists, `policy.wasm.minisig`. It reads at most `bytes_max`, so that `/dev/zero` is an error
/// and does not fill the memory.
pub fn read(path: &Path, bytes_max: usize) -> Result<Artifact, ArtifactError> {
    let origin = path.display().to_string();
    let unreadable = |source| ArtifactError::Unreadable {
        origin: origin.clone(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let bytes = read_at_most(&file, bytes_max as u64 + 1).map_err(unreadable)?;
    if bytes.len() > bytes_max {
        // A device has no meaningful length.
        let length = file.metadata().ok().filter(std::fs::Metadata::is_file);
        return Err(ArtifactError::TooLarge {
            origin,
            bytes: length.map(|metadata| metadata.len()),
            limit: bytes_max as u64,
        });
    }
    let signature = match File::open(signature_of(path)) {
        Ok(file) => Some(read_at_most(&file, SIGNATURE_BYTES_MAX as u64).map_err(unreadable)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(unreadable(error)),
    };
    Ok(Artifact {
        bytes,
        origin,
        signature: signature.map(|text| String::from_utf8_lossy(&text).into_owned()),
    })
}

/// Returns the path of a file's signature.
pub fn signature_of(path: &Path) -> PathBuf {
    let mut signature_path = path.as_os_str().to_owned();
    signature_path.push(".minisig");
    signature_path.into()
}

fn read_at_most(file: &File, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_file_is_read_with_the_policy() {
        let folder = std::env::temp_dir().join(format!("refit-artifact-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("p.wasm");
        std::fs::write(&path, b"component").unwrap();
        assert_eq!(read(&path, 9).unwrap().signature, None);
        std::fs::write(folder.join("p.wasm.minisig"), "signed").unwrap();
        assert_eq!(read(&path, 9).unwrap().signature.as_deref(), Some("signed"));
        let error = read(&path, 8).unwrap_err();
        assert!(
            matches!(
                error,
                ArtifactError::TooLarge {
                    bytes: Some(9),
                    limit: 8,
                    ..
                }
            ),
            "{error:?}"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn endless_device_is_too_large() {
        let error = read(Path::new("/dev/zero"), 1000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`/dev/zero` has more than 1000 bytes, and a policy may have 1000"
        );
    }
}
