//! A small disk: a file system in memory, for which a test has to be root. Knows nothing of what is on it.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    pub at: PathBuf,
}

impl Disk {
    pub fn mount(at: PathBuf, bytes: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(&at)?;
        let size = format!("size={bytes}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&at)
            .output()?;
        ensure!(
            mount.status.success(),
            "cannot mount a small disk, which takes root: {mount:?}"
        );
        Ok(Self { at })
    }

    /// To the last byte.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = fs::File::create(self.ballast())?;
        for size in [4096, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
        let refused = fs::write(self.at.join("one-more"), "x");
        let kind = refused.err().context("it still takes a file")?.kind();
        ensure!(kind == std::io::ErrorKind::StorageFull, "{kind}");
        let _ = fs::remove_file(self.at.join("one-more"));
        Ok(())
    }

    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process that is being killed may still have a file open there.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
