//! Compiles `guests/*.wat` to components when the crate is built, so that the program needs no parser for WebAssembly's text
//! format.
//!
//! A guest is the body of one core module that does one thing wrong. The tables below add everything else that a policy needs: the
//! imports and helpers that the guest names, and the exports that it lacks. `wit-component` makes a component of the module and of
//! the contract itself, `wit/policy.wit`, so that a guest always matches the contract.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, str};

use anyhow::{Context, ensure};
use wasm_encoder::{
    ComponentSection as _, ComponentSectionId, InstanceSection, ModuleArg, RawSection,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

const CONTRACT: &str = "refit:policy@0.1.0";

/// The import that `call $name` in a guest adds.
const IMPORTS: &[(&str, &str, &str, &str)] = &[
    (
        "containers",
        "refit:policy/docker@0.1.0",
        "containers",
        "(param i32)",
    ),
    (
        "inspect",
        "refit:policy/docker@0.1.0",
        "inspect",
        "(param i32 i32 i32)",
    ),
    (
        "pull",
        "refit:policy/docker@0.1.0",
        "pull",
        "(param i32 i32 i32)",
    ),
    (
        "recreate",
        "refit:policy/docker@0.1.0",
        "recreate",
        "(param i32 i32 i32)",
    ),
    (
        "name",
        "refit:policy/docker@0.1.0",
        "[method]container.name",
        "(param i32 i32)",
    ),
    (
        "drop-container",
        "refit:policy/docker@0.1.0",
        "[resource-drop]container",
        "(param i32)",
    ),
    (
        "reference",
        "refit:policy/docker@0.1.0",
        "[method]pulled-image.reference",
        "(param i32 i32)",
    ),
    (
        "drop-image",
        "refit:policy/docker@0.1.0",
        "[resource-drop]pulled-image",
        "(param i32)",
    ),
    (
        "exec",
        "refit:policy/docker@0.1.0",
        "exec",
        "(param i32 i32)",
    ),
    (
        "log",
        "refit:policy/host@0.1.0",
        "log",
        "(param i32 i32 i32)",
    ),
    ("now", "refit:policy/host@0.1.0", "now", "(result i64)"),
    (
        "state-get",
        "refit:policy/host@0.1.0",
        "state-get",
        "(param i32 i32 i32)",
    ),
    (
        "state-set",
        "refit:policy/host@0.1.0",
        "state-set",
        "(param i32 i32 i32 i32 i32 i32)",
    ),
    (
        "new-thing",
        "[export]rogue",
        "[resource-new]thing",
        "(param i32) (result i32)",
    ),
    (
        "drop-thing",
        "[export]rogue",
        "[resource-drop]thing",
        "(param i32)",
    ),
    (
        "after",
        "wasi:clocks/monotonic-clock@0.2.6",
        "subscribe-duration",
        "(param i64) (result i32)",
    ),
    (
        "block",
        "wasi:io/poll@0.2.6",
        "[method]pollable.block",
        "(param i32)",
    ),
    (
        "arguments",
        "wasi:cli/environment@0.2.6",
        "get-arguments",
        "(param i32)",
    ),
    (
        "environment",
        "wasi:cli/environment@0.2.6",
        "get-environment",
        "(param i32)",
    ),
    ("exit", "wasi:cli/exit@0.2.6", "exit", "(param i32)"),
    ("stdin", "wasi:cli/stdin@0.2.6", "get-stdin", "(result i32)"),
    (
        "read",
        "wasi:io/streams@0.2.6",
        "[method]input-stream.blocking-read",
        "(param i32 i64 i32)",
    ),
    (
        "stdout",
        "wasi:cli/stdout@0.2.6",
        "get-stdout",
        "(result i32)",
    ),
    (
        "print",
        "wasi:io/streams@0.2.6",
        "[method]output-stream.blocking-write-and-flush",
        "(param i32 i32 i32 i32)",
    ),
    (
        "folders",
        "wasi:filesystem/preopens@0.2.6",
        "get-directories",
        "(param i32)",
    ),
    (
        "random",
        "wasi:random/random@0.2.6",
        "get-random-bytes",
        "(param i64 i32)",
    ),
    (
        "socket",
        "wasi:sockets/tcp-create-socket@0.2.6",
        "create-tcp-socket",
        "(param i32)",
    ),
    (
        "request",
        "wasi:http/outgoing-handler@0.2.6",
        "handle",
        "(param i32)",
    ),
    ("listen", "wasi:cli/run@0.3.0", "run", "(result i32)"),
    (
        "open-vault",
        "acme:secrets/vault@1.0.0",
        "open",
        "(param i32)",
    ),
];

/// The helper functions that `call $name` adds. In memory, 1024 to 4095 has texts and records of these, 4096 to 8191 answers, 8192
/// to 16383 the host's answers, and 65536 upwards the guest's allocations. Unwritten memory is zero, and zeros are the first case
/// of a variant: `ok`, or nothing.
const HELPERS: &[(&str, &str)] = &[
    // Lists the containers and returns the handle of the first. The address at 8196 points to all handles, their number is at 8200.
    (
        "first",
        r#"(func $first (result i32)
        (call $containers (i32.const 8192))
        (if (i32.load8_u (i32.const 8192)) (then unreachable))
        (i32.load (i32.load (i32.const 8196))))"#,
    ),
    // Pulls the image of the selftest's containers, and returns its handle.
    (
        "image",
        r#"(data (i32.const 1100) "ghcr.io/molecule-ai/workspace-template-hermes:latest")
        (func $image (result i32)
        (i32.store (i32.const 1200) (i32.const 1100))
        (i32.store (i32.const 1204) (i32.const 52))
        (call $pull (i32.const 1200) (i32.const 1) (i32.const 8208))
        (if (i32.load8_u (i32.load (i32.const 8208))) (then unreachable))
        (i32.load offset=4 (i32.load (i32.const 8208))))"#,
    ),
    // Writes one entry of a wave.
    (
        "entry",
        r#"(func $entry (param $at i32) (param $container i32) (param $image i32) (param $strategy i32)
        (i32.store (local.get $at) (local.get $container))
        (i32.store offset=4 (local.get $at) (local.get $image))
        (i32.store8 offset=8 (local.get $at) (local.get $strategy)))"#,
    ),
    // Writes one decision, `current`, about a container of this name.
    (
        "decide",
        r#"(func $decide (param $at i32) (param $name i32) (param $length i32)
        (i32.store (local.get $at) (local.get $name))
        (i32.store offset=4 (local.get $at) (local.get $length))
        (i32.store8 offset=8 (local.get $at) (i32.const 1)))"#,
    ),
    // Writes a report with these decisions.
    (
        "report",
        r#"(func $report (param $decisions i32) (param $count i32) (result i32)
        (i32.store (i32.const 4236) (local.get $decisions))
        (i32.store (i32.const 4240) (local.get $count))
        (i32.const 4224))"#,
    ),
    (
        "must",
        "(func $must (param i32) (if (i32.eqz (local.get 0)) (then unreachable)))",
    ),
];

/// The exports that a guest gets if it lacks them: a valid description, a validation that accepts any configuration, and a report
/// without decisions.
const EXPORTS: &[(&str, &str)] = &[
    ("memory", r#"(memory (export "memory") 2)"#),
    (
        "realloc",
        r#"(global $top (mut i32) (i32.const 65536))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
        (global.set $top (i32.add (local.get $at) (local.get 3)))
        (block $fits
            (br_if $fits (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
            (drop (memory.grow (i32.add (i32.const 1)
                (i32.shr_u (i32.sub (global.get $top) (i32.mul (memory.size) (i32.const 65536))) (i32.const 16))))))
        (local.get $at))"#,
    ),
    (
        "describe",
        r#"(data (i32.const 1024) "hostile0.1.0means harm")
        (data (i32.const 2048)
            "\00\04\00\00" "\07\00\00\00" "\07\04\00\00" "\05\00\00\00" "\0c\04\00\00" "\0a\00\00\00" "\00\00\00\00" "\00\00\00\00")
        (func (export "describe") (type $describe) (i32.const 2048))"#,
    ),
    (
        "validate-config",
        r#"(func (export "validate-config") (type $validate-config) (i32.const 4096))"#,
    ),
    (
        "refresh",
        r#"(func (export "refresh") (type $refresh) (i32.const 4160))"#,
    ),
];

const TYPES: &str = "
    (type $describe (func (result i32)))
    (type $validate-config (func (param i32 i32) (result i32)))
    (type $refresh (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))";

/// Short export names in a guest, and their names for wit-component.
const EXPORT_NAMES: &[(&str, &str)] = &[
    ("realloc", "cabi_realloc"),
    ("describe", "refit:policy/policy@0.1.0#describe"),
    (
        "validate-config",
        "refit:policy/policy@0.1.0#validate-config",
    ),
    ("refresh", "refit:policy/policy@0.1.0#refresh"),
    (
        "after-describe",
        "cabi_post_refit:policy/policy@0.1.0#describe",
    ),
    (
        "after-refresh",
        "cabi_post_refit:policy/policy@0.1.0#refresh",
    ),
    ("destructor", "rogue#[dtor]thing"),
];

/// Write `selftest.rs` into `out`: the name, first comment and component of each guest.
pub(crate) fn build(manifest: &Path, root: &Path, out: &Path) -> anyhow::Result<()> {
    let folder = manifest.join("selftest");
    println!("cargo::rerun-if-changed={}", folder.display());
    let contract = fs::read_to_string(root.join("wit/policy.wit"))?;
    let worlds = fs::read_to_string(folder.join("worlds.wit"))?;
    let mut files: Vec<_> = fs::read_dir(folder.join("guests"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let into = out.join("selftest");
    fs::create_dir_all(&into)?;
    let mut table = String::from("const BUILT: &[(&str, &str, &[u8])] = &[\n");
    for file in files {
        let text = fs::read_to_string(&file)?;
        let name = file.file_stem().and_then(|name| name.to_str());
        let name = name.context("a guest's name is UTF-8")?;
        let component = component(&text, &contract, &worlds)
            .with_context(|| format!("cannot make a component of {}", file.display()))?;
        let path = into.join(name).with_extension("wasm");
        fs::write(&path, component)?;
        let tries = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix(";; "));
        let tries = tries.with_context(|| format!("{} begins with no sentence", file.display()))?;
        writeln!(table, "({name:?}, {tries:?}, include_bytes!({:?})),", path)?;
    }
    table.push_str("];\n");
    fs::write(out.join("selftest.rs"), table)?;
    Ok(())
}

fn component(text: &str, contract: &str, worlds: &str) -> anyhow::Result<Vec<u8>> {
    let mut module = wat::parse_str(module(text)?)?;
    // A guest for another contract version, or for a contract with an additional function.
    let mut contract = contract.to_owned();
    let other = "refit:policy@0.2.0";
    let mut worlds = worlds.to_owned();
    if text.contains(";; speaks: 0.2.0") {
        contract = contract.replace(CONTRACT, other);
        worlds = worlds.replace("policy@0.1.0", "policy@0.2.0");
        module = wat::parse_str(self::module(text)?.replace("@0.1.0", "@0.2.0"))?;
    }
    if text.contains("$exec") {
        let last = "    recreate: func(";
        ensure!(contract.contains(last), "the contract has no `recreate`");
        contract = contract.replace(last, &format!("    exec: func(command: string);\n{last}"));
    }
    let mut resolve = Resolve::default();
    resolve.push_source("policy.wit", &contract)?;
    let package = resolve.push_source("worlds.wit", &worlds)?;
    let world = if text.contains("-thing") {
        "with-own-resource"
    } else {
        "hostile"
    };
    let world = resolve.select_world(&[package], Some(world))?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    let component = ComponentEncoder::default().module(&module)?.encode()?;
    match text
        .lines()
        .find_map(|line| line.strip_prefix(";; beside it: "))
    {
        None => Ok(component),
        Some(crowd) => beside(&component, crowd),
    }
}

/// The text of the whole module.
fn module(guest: &str) -> anyhow::Result<String> {
    let mut body = guest.to_owned();
    for (name, text) in EXPORTS {
        if !guest.contains(&format!("(export \"{name}\"")) {
            writeln!(body, "{text}")?;
        }
    }
    // A helper may need another helper.
    while let Some((_, text)) = HELPERS.iter().find(|(name, _)| {
        body.contains(&format!("call ${name} ")) | body.contains(&format!("call ${name})"))
            && !body.contains(&format!("(func ${name} "))
    }) {
        writeln!(body, "{text}")?;
    }
    let mut text = format!("(module {TYPES}\n");
    for (name, interface, function, signature) in IMPORTS {
        if body.contains(&format!("call ${name} ")) || body.contains(&format!("call ${name})")) {
            writeln!(
                text,
                "(import {interface:?} {function:?} (func ${name} {signature}))"
            )?;
        }
    }
    for (short, long) in EXPORT_NAMES {
        body = body.replace(
            &format!("(export \"{short}\")"),
            &format!("(export {long:?})"),
        );
    }
    Ok(text + &body + ")")
}

/// Add `100 × (module)`: that many instances of a module, after the policy's own parts.
fn beside(policy: &[u8], crowd: &str) -> anyhow::Result<Vec<u8>> {
    let (count, module) = crowd.split_once(" × ").context("how many of what?")?;
    let module = wat::parse_str(module)?;
    let mut modules = 0;
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(policy) {
        match payload? {
            Payload::ModuleSection { .. } => {
                modules += u32::from(depth == 0);
                depth += 1;
            }
            Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            _ => {}
        }
    }
    let mut component = policy.to_vec();
    let section = RawSection {
        id: ComponentSectionId::CoreModule.into(),
        data: &module,
    };
    section.append_to_component(&mut component);
    let mut instances = InstanceSection::new();
    for _ in 0..count.parse()? {
        instances.instantiate(modules, Vec::<(&str, ModuleArg)>::new());
    }
    instances.append_to_component(&mut component);
    Ok(component)
}
