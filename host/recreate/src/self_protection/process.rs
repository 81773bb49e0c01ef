//! Reads from the kernel which container this process runs in, if it runs in one.
//!
//! No single fact is enough. With `--network container:X` the files in `/etc` are those of X; a user may mount other files over
//! them; cgroup namespaces hide the path in `/proc/self/cgroup`; `--uts host` and `--hostname` change the host name. Parsing is
//! pure; [`ProcessFacts::read`] does all the reading.

use std::collections::BTreeSet;
use std::path::Path;

/// The files that engines write for each container and mount into it.
const ENGINE_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// Digits of a container's whole id.
const ID_DIGITS: usize = 64;
/// Digits of the id that an engine uses as the host name.
const SHORT_ID_DIGITS: usize = 12;

/// Facts about this process. They are read once, since none of them changes while the process lives.
#[derive(Clone, Debug, Default)]
pub(super) struct ProcessFacts {
    /// Whether any fact shows that this process runs in a container.
    pub(super) in_container: bool,
    /// Container ids that the kernel or the engine gives for this process.
    pub(super) own_ids: BTreeSet<String>,
    /// Ids of the containers that the files in `/etc` belong to: Refit's own, or the container whose network it uses.
    pub(super) network_ids: BTreeSet<String>,
    pub(super) hostname: Option<String>,
    /// The writable layer of the root file system, as the engine mounted it.
    pub(super) upper_dir: Option<String>,
    pub(super) mounts: Vec<MountPoint>,
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    /// The mounted folder or file, within its own file system.
    pub(super) root: String,
    pub(super) path: String,
    upper_dir: Option<String>,
}

impl ProcessFacts {
    pub(super) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let containerenv = read("/run/.containerenv");
        let mut facts = Self::from_text(
            &read("/proc/self/mountinfo"),
            &read("/proc/self/cgroup"),
            &containerenv,
        );
        let hostname = read("/proc/sys/kernel/hostname").trim().to_owned();
        facts.hostname = Some(hostname).filter(|name| !name.is_empty());
        facts.in_container |= ["/.dockerenv", "/run/.containerenv"]
            .iter()
            .any(|path| Path::new(path).exists());
        facts
    }

    fn from_text(mountinfo: &str, cgroup: &str, containerenv: &str) -> Self {
        let mounts: Vec<MountPoint> = mountinfo.lines().filter_map(parse_mount_point).collect();
        let mut own_ids = parse_cgroup_ids(cgroup);
        own_ids.extend(parse_containerenv_id(containerenv));
        let files = mounts
            .iter()
            .filter(|mount| ENGINE_FILES.contains(&mount.path.as_str()));
        let network_ids: BTreeSet<String> = files
            .filter_map(|mount| parse_engine_file_id(&mount.root))
            .collect();
        // A later mount at the same place hides the earlier one.
        let root = mounts.iter().rfind(|mount| mount.path == "/");
        Self {
            in_container: !own_ids.is_empty() || !network_ids.is_empty(),
            upper_dir: root.and_then(|root| root.upper_dir.clone()),
            own_ids,
            network_ids,
            hostname: None,
            mounts,
        }
    }

    /// Reports whether the host name is the one that an engine derives from this id.
    pub(super) fn hostname_is_short_id(&self, id: &str) -> bool {
        self.in_container
            && self
                .hostname
                .as_deref()
                .is_some_and(|name| name.len() == SHORT_ID_DIGITS && id.starts_with(name))
    }

    /// Compares the writable layer of the root file system with `theirs`; `None` if either is unknown.
    pub(super) fn has_upper_dir(&self, theirs: Option<&str>) -> Option<bool> {
        let (ours, theirs) = (self.upper_dir.as_deref()?, theirs?);
        if ours.is_empty() || theirs.is_empty() {
            return None;
        }
        // An engine with many layers mounts from within its own folder, with relative paths.
        let relative = !ours.starts_with('/') && ours.len() >= SHORT_ID_DIGITS;
        Some(ours == theirs || (relative && theirs.ends_with(&format!("/{ours}"))))
    }
}

/// Parses a line of mountinfo: `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`
fn parse_mount_point(line: &str) -> Option<MountPoint> {
    let mut fields = line.split(' ');
    let root = unescape(fields.nth(3)?);
    let path = unescape(fields.next()?);
    let (_, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    let kind = fields.next()?;
    let options = fields.nth(1).unwrap_or_default();
    let upper_dir = options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))
        .filter(|_| kind == "overlay")
        .map(unescape);
    Some(MountPoint {
        root,
        path,
        upper_dir,
    })
}

/// Decodes blanks, tabs, line ends and backslashes, which the kernel writes as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match code {
            Some(code) if first == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Parses the container id from the path of an engine file. Docker: `/var/lib/docker/containers/<id>/hosts`; Podman:
/// `/…/overlay-containers/<id>/userdata/hosts`.
fn parse_engine_file_id(root: &str) -> Option<String> {
    let after = root
        .split('/')
        .skip_while(|segment| !segment.ends_with("containers"));
    after.filter_map(parse_full_id).next()
}

/// Parses the innermost container id in each line: `0::/system.slice/docker-<id>.scope`, `4:memory:/docker/<id>`,
/// `0::/machine.slice/libpod-<id>.scope/container`, `…/cri-containerd-<id>.scope`.
pub(super) fn parse_cgroup_ids(cgroup: &str) -> BTreeSet<String> {
    let innermost = |line: &str| {
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').rev().find_map(|segment| {
            let name = segment.strip_suffix(".scope").unwrap_or(segment);
            // Podman's monitor of a container does not run in the container.
            if name.contains("conmon") {
                return None;
            }
            parse_full_id(name.rsplit_once('-').map_or(name, |(_, id)| id))
        })
    };
    cgroup.lines().filter_map(innermost).collect()
}

/// Parses the container id that Podman writes as `id="…"` into a file in some containers.
fn parse_containerenv_id(text: &str) -> Option<String> {
    let mut lines = text.lines();
    let id = lines.find_map(|line| line.strip_prefix("id="))?;
    parse_full_id(id.trim().trim_matches('"'))
}

fn parse_full_id(text: &str) -> Option<String> {
    let whole = text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(ID_DIGITS)
    }

    fn only(id: &str) -> BTreeSet<String> {
        BTreeSet::from([id.to_owned()])
    }

    #[test]
    fn engine_files_name_a_container() {
        let id = id('a');
        for root in [
            format!("/var/lib/docker/containers/{id}/hosts"),
            format!("/containers/{id}/resolv.conf"),
            format!("/my\\040containers/containers/{id}/hosts"),
            format!("/containers/storage/overlay-containers/{id}/userdata/hosts"),
            format!("/home/me/.local/share/containers/storage/vfs-containers/{id}/userdata/hosts"),
        ] {
            for path in ENGINE_FILES {
                let line =
                    format!("6 5 254:0 {root} {path} rw,relatime master:1 - ext4 /dev/vda rw\n");
                let facts = ProcessFacts::from_text(&line, "", "");
                assert_eq!(facts.network_ids, only(&id), "{line}");
                assert!(facts.in_container && facts.own_ids.is_empty());
            }
        }
    }

    #[test]
    fn files_of_a_user_name_no_container() {
        let facts = ProcessFacts::from_text(
            "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
             23 22 254:0 /etc/hostname /etc/hostname ro - ext4 /dev/vda rw\n\
             24 22 254:0 /srv/dns/resolv.conf /etc/resolv.conf ro - ext4 /dev/vda rw\n",
            "0::/user.slice/user-1000.slice/session-3.scope\n12:cpu,cpuacct:/user.slice\n",
            "",
        );
        assert!(!facts.in_container, "{facts:?}");
        assert_eq!(facts.upper_dir, None);
    }

    #[test]
    fn cgroup_path_names_own_container() {
        let (outer, inner) = (id('b'), id('c'));
        for line in [
            format!("0::/system.slice/docker-{inner}.scope"),
            format!("12:cpu,cpuacct:/docker/{inner}"),
            format!("1:name=systemd:/docker/{outer}/docker/{inner}"),
            format!("0::/machine.slice/libpod-{inner}.scope/container"),
            format!("0::/libpod_parent/libpod-{inner}"),
            format!("0::/kubepods.slice/pod1.slice/cri-containerd-{inner}.scope"),
            format!("0::/system.slice/docker-{inner}.scope/init.scope"),
        ] {
            assert_eq!(parse_cgroup_ids(&line), only(&inner), "{line}");
        }
        assert!(parse_cgroup_ids("0::/").is_empty());
        assert!(
            parse_cgroup_ids(&format!("0::/machine.slice/libpod-conmon-{inner}.scope")).is_empty()
        );
    }

    #[test]
    fn podman_environment_file_names_own_container() {
        let id = id('d');
        let text = format!("engine=\"podman-4.3.1\"\nname=\"refit\"\nid=\"{id}\"\nrootless=1\n");
        assert_eq!(ProcessFacts::from_text("", "", &text).own_ids, only(&id));
        assert!(ProcessFacts::from_text("", "", "").own_ids.is_empty());
    }

    #[test]
    fn root_overlay_is_compared_with_engine_layer() {
        let line = |options: &str| {
            format!(
                "600 500 0:50 / / rw,relatime master:3 - overlay overlay rw,{options},workdir=w\n"
            )
        };
        let upper = "/var/lib/docker/overlay2/0f3c/diff";
        let facts = ProcessFacts::from_text(&line(&format!("lowerdir=l,upperdir={upper}")), "", "");
        assert_eq!(facts.has_upper_dir(Some(upper)), Some(true));
        assert_eq!(
            facts.has_upper_dir(Some("/var/lib/docker/overlay2/1f3c/diff")),
            Some(false)
        );
        assert_eq!(facts.has_upper_dir(None), None);
        // With many layers.
        let layer = format!("{}/diff", id('e'));
        let facts = ProcessFacts::from_text(&line(&format!("upperdir={layer}")), "", "");
        let theirs = format!("/var/lib/docker/overlay2/{layer}");
        assert_eq!(facts.has_upper_dir(Some(&theirs)), Some(true));
        let other = format!("/var/lib/docker/overlay2/f{layer}");
        assert_eq!(facts.has_upper_dir(Some(&other)), Some(false));
    }

    #[test]
    fn host_name_counts_in_a_container_only() {
        let mut facts = ProcessFacts {
            hostname: Some("0123456789ab".into()),
            ..ProcessFacts::default()
        };
        let id = format!("0123456789ab{}", "0".repeat(52));
        assert!(!facts.hostname_is_short_id(&id));
        facts.in_container = true;
        assert!(facts.hostname_is_short_id(&id));
        facts.hostname = Some("0".into());
        assert!(!facts.hostname_is_short_id(&"0".repeat(64)));
    }
}
