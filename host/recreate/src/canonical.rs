//! Canonical forms of values that have several spellings. Engines accept `/data/` and show `/data`, accept `cap_net_admin` and
//! show `CAP_NET_ADMIN`, and a newer engine rewrites values that an older one kept unchanged. Two values mean the same if their
//! canonical forms are equal.
//!
//! Canonical forms are only for comparison. A request repeats the engine's own spelling.
//!
//! Pure: a field's name and its value in, a value out. An unknown field is its own canonical form.

use std::net::IpAddr;

use refit_model::container::Object;
use serde_json::{Value, json};

/// Linux's signals by number, from 1 on.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal as programs count them: the C library reserves two for itself.
const SIGNAL_RTMIN: u32 = 34;
const SIGNAL_RTMAX: u32 = 64;

/// Paths that every engine masks, whatever its version: a list with all of them is the engine's default.
const MASKED_ALWAYS: &[&str] = &[
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Further paths that some versions mask.
const MASKED_SOMETIMES: &[&str] = &[
    "/proc/asound",
    "/proc/interrupts",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/fs/selinux",
];
/// Docker 28 masks one such path for each processor.
const MASKED_PER_PROCESSOR: (&str, &str) = ("/sys/devices/system/cpu/cpu", "/thermal_throttle");
const READ_ONLY_ALWAYS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
const READ_ONLY_SOMETIMES: &[&str] = &["/proc/asound"];

/// Returns the canonical form of a field of `Config` or `HostConfig`.
pub(super) fn canonicalize(field: &str, value: &Value) -> Value {
    match field {
        "WorkingDir" => map_text(value, clean_path),
        "StopSignal" => match value {
            Value::Number(number) => json!(signal_number(&number.to_string())),
            other => map_text(other, signal_number),
        },
        "MacAddress" => map_text(value, str::to_lowercase),
        "Volumes" | "Tmpfs" => map_keys(value, clean_path),
        "ExposedPorts" => map_keys(value, port),
        "PortBindings" => {
            let mut bindings = map_keys(value, port);
            let lists = bindings.as_object_mut().into_iter().flatten();
            for binding in lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten()) {
                map_field(binding, "HostIp", address);
            }
            bindings
        }
        "Binds" => map_items(value, canonicalize_bind),
        "Mounts" => map_objects(
            value,
            &[
                ("Target", clean_path),
                ("Source", clean_path),
                ("Type", str::to_lowercase),
            ],
        ),
        "CapAdd" | "CapDrop" => map_items(value, capability),
        "SecurityOpt" => map_items(value, security_option),
        "ExtraHosts" => map_items(value, extra_host),
        "Dns" => map_items(value, address),
        "Ulimits" => map_objects(value, &[("Name", ulimit)]),
        "Devices" => map_objects(
            value,
            &[
                ("PathOnHost", clean_path),
                ("PathInContainer", clean_path),
                ("CgroupPermissions", sorted_letters),
            ],
        ),
        "RestartPolicy" => {
            let mut policy = value.clone();
            map_field(&mut policy, "Name", |name| {
                if name == "no" {
                    String::new()
                } else {
                    name.to_owned()
                }
            });
            policy
        }
        "NetworkMode" => match value.as_str() {
            Some("" | "default") => json!("bridge"),
            _ => value.clone(),
        },
        // A negative number means no limit.
        "PidsLimit" | "Memory" | "MemoryReservation" | "CpuQuota" | "MemorySwappiness"
            if is_negative(value) =>
        {
            Value::Null
        }
        _ => value.clone(),
    }
}

/// Returns the canonical form of a field of an endpoint.
pub(super) fn canonicalize_endpoint(field: &str, value: &Value) -> Value {
    match field {
        "IPAMConfig" => {
            let mut config = value.clone();
            for key in ["IPv4Address", "IPv6Address"] {
                map_field(&mut config, key, address);
            }
            if let Some(list) = config.get_mut("LinkLocalIPs") {
                *list = map_items(list, address);
            }
            config
        }
        "MacAddress" => map_text(value, str::to_lowercase),
        _ => value.clone(),
    }
}

/// Cleans a path as the engine does: no `.`, no `..`, no two slashes in a row, none at the end. A text that is not an absolute
/// Linux path stays as it is: the name of a volume, or a Windows path.
pub(super) fn clean_path(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = kept.pop(),
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Returns the canonical form of a port: `80` becomes `80/tcp`.
pub(super) fn port(port: &str) -> String {
    let (number, protocol) = port.split_once('/').unwrap_or((port, ""));
    let protocol = match protocol {
        "" => "tcp".to_owned(),
        named => named.to_lowercase(),
    };
    format!("{number}/{protocol}")
}

/// A bind: `source:destination[:options]`, or `destination[:options]` for a volume without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bind<'a> {
    pub(super) source: Option<&'a str>,
    pub(super) destination: &'a str,
    pub(super) options: Option<&'a str>,
}

impl<'a> Bind<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut parts = text.splitn(3, ':');
        let first = parts.next().unwrap_or_default();
        match (parts.next(), parts.next()) {
            (None, _) => Self {
                source: None,
                destination: first,
                options: None,
            },
            // Destinations are absolute paths, and options are words.
            (Some(second), None) if !second.starts_with('/') && first.starts_with('/') => Self {
                source: None,
                destination: first,
                options: Some(second),
            },
            (Some(second), options) => Self {
                source: Some(first),
                destination: second,
                options,
            },
        }
    }
}

/// Reports whether an engine filled in this list of masked or read-only paths by itself. The list depends on the engine's
/// version and on the machine, so a replacement gets the list of the engine that creates it. Every other list is a user's
/// setting, also an empty one.
pub(super) fn is_default_path_list(field: &str, value: &Value) -> bool {
    let (always, sometimes) = match field {
        "MaskedPaths" => (MASKED_ALWAYS, MASKED_SOMETIMES),
        "ReadonlyPaths" => (READ_ONLY_ALWAYS, READ_ONLY_SOMETIMES),
        _ => return false,
    };
    let Some(list) = value.as_array() else {
        return false;
    };
    let paths: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
    let Some(paths) = paths else {
        return false;
    };
    let (before, after) = MASKED_PER_PROCESSOR;
    let is_of_a_processor = |path: &str| {
        let number = path
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after));
        field == "MaskedPaths"
            && number.is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_known =
        |path: &&str| always.contains(path) || sometimes.contains(path) || is_of_a_processor(path);
    always.iter().all(|path| paths.contains(path)) && paths.iter().all(is_known)
}

fn is_negative(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number < 0.0)
}

fn map_text(value: &Value, spell: impl Fn(&str) -> String) -> Value {
    value
        .as_str()
        .map_or_else(|| value.clone(), |text| json!(spell(text)))
}

fn map_items(value: &Value, spell: impl Fn(&str) -> String) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| map_text(item, &spell)).collect(),
        other => other.clone(),
    }
}

fn map_keys(value: &Value, spell: impl Fn(&str) -> String) -> Value {
    match value {
        Value::Object(entries) => {
            let spelled = entries
                .iter()
                .map(|(key, value)| (spell(key), value.clone()));
            Value::Object(spelled.collect::<Object>())
        }
        other => other.clone(),
    }
}

type Spelling = fn(&str) -> String;

fn map_objects(value: &Value, fields: &[(&str, Spelling)]) -> Value {
    let mut spelled = value.clone();
    for object in spelled.as_array_mut().into_iter().flatten() {
        for (field, spell) in fields {
            map_field(object, field, spell);
        }
    }
    spelled
}

fn map_field(object: &mut Value, field: &str, spell: impl Fn(&str) -> String) {
    if let Some(value) = object.get_mut(field) {
        *value = map_text(value, spell);
    }
}

/// Sorts the options, and drops those that engines use by default.
fn canonicalize_bind(text: &str) -> String {
    let bind = Bind::parse(text);
    let options = bind.options.unwrap_or_default().split(',');
    let mut options: Vec<&str> = options
        .filter(|it| !matches!(*it, "" | "rw" | "rbind" | "rprivate"))
        .collect();
    options.sort_unstable();
    let source = bind.source.map(clean_path).unwrap_or_default();
    format!(
        "{source}:{}:{}",
        clean_path(bind.destination),
        options.join(",")
    )
}

fn capability(name: &str) -> String {
    let name = name.to_uppercase();
    match name.strip_prefix("CAP_") {
        Some(plain) => plain.to_owned(),
        None => name,
    }
}

/// Canonicalizes a security option: `label:disable` means `label=disable`, and a switch without a value is on.
fn security_option(option: &str) -> String {
    if option == "no-new-privileges" {
        return "no-new-privileges=true".into();
    }
    match option.find([':', '=']) {
        Some(at) => format!("{}={}", &option[..at], &option[at + 1..]),
        None => option.to_owned(),
    }
}

/// Canonicalizes `name:address`, also written `name=address`, with or without `[…]` around an IPv6 address. Host names are
/// case-insensitive.
fn extra_host(entry: &str) -> String {
    let (name, ip) = match entry.find([':', '=']) {
        Some(at) => (&entry[..at], &entry[at + 1..]),
        None => (entry, ""),
    };
    format!("{}:{}", name.to_lowercase(), address(ip))
}

fn address(text: &str) -> String {
    let plain = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let plain = plain.unwrap_or(text);
    plain
        .parse::<IpAddr>()
        .map_or_else(|_| text.to_owned(), |ip| ip.to_string())
}

fn ulimit(name: &str) -> String {
    let name = name.to_lowercase();
    match name.strip_prefix("rlimit_") {
        Some(plain) => plain.to_owned(),
        None => name,
    }
}

fn sorted_letters(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    letters.sort_unstable();
    letters.into_iter().collect()
}

/// Returns the number of a signal: `TERM`, `SIGTERM` and `15` are the same signal, and so are `RTMIN+3` and `37`. Other texts
/// stay as they are.
fn signal_number(text: &str) -> String {
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let by_name = SIGNALS.iter().zip(1..).find(|(known, _)| **known == name);
    let relative = |prefix: &str| name.strip_prefix(prefix);
    let number = match (by_name, name) {
        (Some((_, number)), _) => Some(number),
        (None, "IOT") => Some(6),
        (None, "CLD") => Some(17),
        (None, "POLL") => Some(29),
        (None, "RTMIN") => Some(SIGNAL_RTMIN),
        (None, "RTMAX") => Some(SIGNAL_RTMAX),
        (None, name) => name
            .parse()
            .ok()
            .or_else(|| {
                relative("RTMIN+").and_then(|it| it.parse::<u32>().ok()?.checked_add(SIGNAL_RTMIN))
            })
            .or_else(|| {
                relative("RTMAX-").and_then(|it| SIGNAL_RTMAX.checked_sub(it.parse().ok()?))
            }),
    };
    number.map_or_else(|| text.to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(field: &str, one: Value, other: Value) {
        assert_eq!(
            canonicalize(field, &one),
            canonicalize(field, &other),
            "{field}: {one} and {other}"
        );
    }

    #[track_caller]
    fn differ(field: &str, one: Value, other: Value) {
        assert_ne!(
            canonicalize(field, &one),
            canonicalize(field, &other),
            "{field}: {one} and {other}"
        );
    }

    #[test]
    fn paths_are_cleaned() {
        for (written, cleaned) in [
            ("/app/", "/app"),
            ("/", "/"),
            ("//", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("/x/../data", "/data"),
            ("/../..", "/"),
            ("data", "data"),
            ("C:\\data\\", "C:\\data\\"),
            ("", ""),
        ] {
            assert_eq!(clean_path(written), cleaned, "{written}");
        }
        same("WorkingDir", json!("/app/"), json!("/app"));
        same("Volumes", json!({"/data/": {}}), json!({"/data": {}}));
        same(
            "Tmpfs",
            json!({"/run/": "size=1m"}),
            json!({"/run": "size=1m"}),
        );
        same(
            "Mounts",
            json!([{"Target": "/data/", "Type": "volume"}]),
            json!([{"Target": "/data", "Type": "volume"}]),
        );
        differ("WorkingDir", json!("/app"), json!("/App"));
    }

    #[test]
    fn equivalent_binds_have_one_form() {
        same("Binds", json!(["/a/:/b/:ro,z"]), json!(["/a:/b:z,ro"]));
        same("Binds", json!(["v:/b"]), json!(["v:/b:rw"]));
        differ("Binds", json!(["v:/b"]), json!(["v:/b:ro"]));
        differ("Binds", json!(["v:/b"]), json!(["w:/b"]));
        let parsed = |text| {
            let bind = Bind::parse(text);
            (bind.source, bind.destination, bind.options)
        };
        assert_eq!(parsed("/data"), (None, "/data", None));
        assert_eq!(parsed("/data:ro"), (None, "/data", Some("ro")));
        assert_eq!(parsed("/a:/b"), (Some("/a"), "/b", None));
        assert_eq!(parsed("v:/b:ro,z"), (Some("v"), "/b", Some("ro,z")));
    }

    #[test]
    fn equivalent_ports_and_addresses_have_one_form() {
        same("ExposedPorts", json!({"80": {}}), json!({"80/tcp": {}}));
        same("ExposedPorts", json!({"53/UDP": {}}), json!({"53/udp": {}}));
        differ("ExposedPorts", json!({"53/udp": {}}), json!({"53": {}}));
        same(
            "PortBindings",
            json!({"80": [{"HostIp": "[::1]", "HostPort": "1"}]}),
            json!({"80/tcp": [{"HostIp": "0:0:0:0:0:0:0:1", "HostPort": "1"}]}),
        );
        differ(
            "PortBindings",
            json!({"80/tcp": [{"HostIp": "", "HostPort": "1"}]}),
            json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]}),
        );
        same("Dns", json!(["FD00::0053"]), json!(["fd00::53"]));
        same(
            "ExtraHosts",
            json!(["Db:[FD00::1]", "gw=host-gateway"]),
            json!(["db:fd00::1", "gw:host-gateway"]),
        );
        differ("ExtraHosts", json!(["db:10.0.0.1"]), json!(["db:10.0.0.2"]));
        let address = |text| canonicalize_endpoint("IPAMConfig", &json!({ "IPv6Address": text }));
        assert_eq!(address("FD00::0009"), address("fd00::9"));
    }

    #[test]
    fn equivalent_names_have_one_form() {
        same(
            "CapAdd",
            json!(["net_admin", "all"]),
            json!(["CAP_NET_ADMIN", "ALL"]),
        );
        same(
            "SecurityOpt",
            json!(["no-new-privileges", "label:disable", "seccomp=unconfined"]),
            json!([
                "no-new-privileges=true",
                "label=disable",
                "seccomp:unconfined"
            ]),
        );
        differ(
            "SecurityOpt",
            json!(["no-new-privileges"]),
            json!(["no-new-privileges:false"]),
        );
        same(
            "Ulimits",
            json!([{"Name": "RLIMIT_NOFILE"}]),
            json!([{"Name": "nofile"}]),
        );
        same("RestartPolicy", json!({"Name": "no"}), json!({"Name": ""}));
        same("NetworkMode", json!("default"), json!("bridge"));
        differ("NetworkMode", json!("host"), json!("bridge"));
        same(
            "MacAddress",
            json!("02:42:AC:11:00:02"),
            json!("02:42:ac:11:00:02"),
        );
        same(
            "Devices",
            json!([{"CgroupPermissions": "rwm"}]),
            json!([{"CgroupPermissions": "mrw"}]),
        );
    }

    #[test]
    fn signal_name_and_number_have_one_form() {
        for (one, other) in [
            ("SIGTERM", "15"),
            ("term", "TERM"),
            ("SIGRTMIN+3", "37"),
            ("RTMAX-1", "63"),
            ("SIGSYS", "31"),
        ] {
            same("StopSignal", json!(one), json!(other));
        }
        same("StopSignal", json!(15), json!("SIGTERM"));
        differ("StopSignal", json!("SIGINT"), json!("SIGTERM"));
        differ("StopSignal", json!("SIGMINE"), json!("SIGTERM"));
    }

    #[test]
    fn negative_limits_mean_no_limit() {
        for field in ["PidsLimit", "Memory", "MemorySwappiness", "CpuQuota"] {
            same(field, json!(-1), Value::Null);
        }
        differ("PidsLimit", json!(1), Value::Null);
        // -1 means unlimited, while 0 means as much again as the memory.
        differ("MemorySwap", json!(-1), json!(0));
    }

    #[test]
    fn default_path_lists_are_recognized() {
        let masked_20 = json!([
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware"
        ]);
        let masked_28 = json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
            "/sys/devices/system/cpu/cpu0/thermal_throttle",
            "/sys/devices/system/cpu/cpu11/thermal_throttle"
        ]);
        for list in [&masked_20, &masked_28] {
            assert!(is_default_path_list("MaskedPaths", list), "{list}");
        }
        let read_only = json!([
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger"
        ]);
        assert!(is_default_path_list("ReadonlyPaths", &read_only));
        let mut more = masked_28.clone();
        more.as_array_mut().unwrap().push(json!("/etc/mine"));
        let less: Value = masked_20.as_array().unwrap()[3..].into();
        for wish in [json!([]), json!(["/proc/kcore"]), more, less, Value::Null] {
            assert!(!is_default_path_list("MaskedPaths", &wish), "{wish}");
        }
        assert!(!is_default_path_list("CapAdd", &read_only));
    }
}
