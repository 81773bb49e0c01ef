//! Policies that misbehave, written by hand in WebAssembly's text, so that they do exactly that and nothing else.

use std::fmt::Write;

/// The types that the contract's interface `policy` names, in `wit/policy.wit`. `$` stands before those among themselves.
const TYPES: &[(&str, &str)] = &[
    (
        "description",
        r#"(record (field "name" string) (field "version" string) (field "summary" string) (field "config-schema" string))"#,
    ),
    (
        "config-problem",
        r#"(record (field "path" string) (field "problem" string))"#,
    ),
    ("trigger", r#"(enum "operator" "api" "schedule" "webhook")"#),
    (
        "request",
        r#"(record (field "trigger" $trigger) (field "targets" (list string)) (field "images" (list string))
            (field "recreate" bool) (field "force" bool))"#,
    ),
    (
        "target",
        r#"(record (field "name" string) (field "image" string))"#,
    ),
    (
        "verdict",
        r#"(enum "recreate" "current" "stale" "unknown" "leave")"#,
    ),
    (
        "decision",
        r#"(record (field "container" string) (field "verdict" $verdict) (field "rule" string) (field "reason" string))"#,
    ),
    (
        "report",
        r#"(record (field "targets" (list $target)) (field "decisions" (list $decision)))"#,
    ),
    (
        "unknown-targets",
        r#"(record (field "asked" (list string)) (field "known" (list string)))"#,
    ),
    (
        "engine-error",
        r#"(variant (case "denied" string) (case "not-found") (case "unavailable" string)
            (case "quota-exceeded" string) (case "cancelled") (case "other" string))"#,
    ),
    (
        "unlisted",
        r#"(record (field "error" $engine-error) (field "targets" (list $target)))"#,
    ),
    (
        "failure",
        r#"(variant (case "unknown-targets" $unknown-targets) (case "invalid-config" (list $config-problem))
            (case "unlisted" $unlisted) (case "other" string))"#,
    ),
];

const FUNCTIONS: &[(&str, &str)] = &[
    ("describe", "(result $description)"),
    (
        "validate-config",
        r#"(param "config" string) (result (result (error (list $config-problem))))"#,
    ),
    (
        "refresh",
        r#"(param "request" $request) (param "config" string) (result (result $report (error $failure)))"#,
    ),
];

/// What a guest of these tests is called, and what it does instead of what it should.
pub(crate) struct Guest<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    pub(crate) describe: &'a str,
    pub(crate) validate: &'a str,
    pub(crate) refresh: &'a str,
    /// More of the module.
    pub(crate) more: &'a str,
}

impl Default for Guest<'_> {
    /// Says who it is, accepts any configuration, and traps when it is to make a refresh.
    fn default() -> Self {
        Self {
            name: "traps",
            version: "0.1.0",
            describe: "i32.const 2048",
            // Memory is zero where nobody wrote: the first case, which is `ok`.
            validate: "i32.const 4096",
            refresh: "unreachable",
            more: "",
        }
    }
}

impl Guest<'_> {
    pub(crate) fn component(&self) -> anyhow::Result<Vec<u8>> {
        let Self {
            name,
            version,
            describe,
            validate,
            refresh,
            more,
        } = self;
        // A description is four strings: where each begins, and how long it is. Summary and schema are empty.
        let word = |number: usize| -> anyhow::Result<String> {
            let bytes = u32::try_from(number)?.to_le_bytes();
            Ok(bytes.iter().map(|byte| format!("\\{byte:02x}")).collect())
        };
        let (at, after) = (word(1024)?, word(1024 + name.len())?);
        let (length, version_length, none) = (word(name.len())?, word(version.len())?, word(0)?);
        policy(&format!(
            r#"
        (memory (export "memory") 1)
        (data (i32.const 1024) "{name}{version}")
        (data (i32.const 2048) "{at}{length}{after}{version_length}{none}{none}{none}{none}")
        ;; One problem, without a path and without a word.
        (data (i32.const 6000) "\01\00\00\00\70\18\00\00\01\00\00\00")
        ;; Nothing that it is handed is ever looked at, so all of it may lie in one place.
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 8192)
        (func (export "describe") (result i32) {describe})
        (func (export "validate-config") (param i32 i32) (result i32) {validate})
        (func (export "refresh") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {refresh})
        {more}"#
        ))
    }
}

pub(crate) fn traps_in_refresh() -> anyhow::Result<Vec<u8>> {
    Guest::default().component()
}

/// Finds one problem with any configuration.
pub(crate) const ACCEPTS_NO_CONFIG: &str = "i32.const 6000";

/// Valid, small in bytes for what it costs to compile: many functions, each of which calls for a register allocator that has
/// to think.
pub(crate) fn slow_to_compile() -> anyhow::Result<Vec<u8>> {
    let mut body = String::new();
    for n in 0..400 {
        write!(
            body,
            "(local.set {} (i32.add (i32.mul (local.get {}) (local.get {})) (i32.load offset={n} (local.get {}))))",
            n % 40,
            (n * 7) % 40,
            (n * 11 + 3) % 40,
            (n * 13 + 5) % 40
        )?;
    }
    let locals = "i32 ".repeat(40);
    let mut more = String::new();
    for _ in 0..400 {
        write!(
            more,
            "(func (result i32) (local {locals}) (loop {body} (br_if 0 (local.get 1))) local.get 0)"
        )?;
    }
    Guest {
        more: &more,
        ..Guest::default()
    }
    .component()
}

/// A core module made a component that exports the contract's interface.
///
/// The functions of an exported instance may name no type that it does not export too, and each place has its own: the types
/// are written down where the module is lifted, where they enter a component that only passes on, and where they leave it.
fn policy(module: &str) -> anyhow::Result<Vec<u8>> {
    let mut text =
        format!("(component (core module $m {module}) (core instance $code (instantiate $m))\n");
    for (name, definition) in TYPES {
        writeln!(text, "(type ${name} {definition})")?;
    }
    for (name, signature) in FUNCTIONS {
        writeln!(
            text,
            r#"(func ${name} {signature} (canon lift (core func $code "{name}")
                (memory (core memory $code "memory")) (realloc (core func $code "realloc"))))"#
        )?;
    }
    text.push_str("(component $passing\n");
    for (name, definition) in TYPES {
        writeln!(
            text,
            r#"(type $in.{name} {definition}) (import "{name}" (type ${name} (eq $in.{name})))"#
        )?;
    }
    for (name, signature) in FUNCTIONS {
        writeln!(text, r#"(import "{name}" (func ${name} {signature}))"#)?;
    }
    for (name, definition) in TYPES {
        let definition = definition.replace('$', "$out.");
        writeln!(
            text,
            r#"(type $of.{name} {definition}) (export $out.{name} "{name}" (type $of.{name}))"#
        )?;
    }
    for (name, signature) in FUNCTIONS {
        let signature = signature.replace('$', "$out.");
        writeln!(
            text,
            r#"(export "{name}" (func ${name}) (func {signature}))"#
        )?;
    }
    text.push_str(")\n(instance $policy (instantiate $passing\n");
    for (name, _) in TYPES {
        writeln!(text, r#"(with "{name}" (type ${name}))"#)?;
    }
    for (name, _) in FUNCTIONS {
        writeln!(text, r#"(with "{name}" (func ${name}))"#)?;
    }
    text.push_str("))\n(export \"refit:policy/policy@0.1.0\" (instance $policy)))");
    Ok(wat::parse_str(text)?)
}
