//! Reads from a component's bytes what it is and what it needs. This module compiles and runs nothing.
//!
//! In the daemon, a worker reads the [`Facts`] (see [`super::isolation`]).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use refit_model::printable::printable;
use wasmparser::component_types::ComponentEntityType;
use wasmparser::{KnownCustom, Parser, Payload, Validator, WasmFeatures};

use super::contract::{self, CONTRACT, CONTRACT_VERSION, is_ours};
use super::limits::{DECLARATION_BYTES_MAX, NAMES_MAX, NESTED_MAX};
use super::{PolicyError, digest, limits, wasi};

/// The interfaces that a component imports, and the functions that it uses of each: `refit:policy/docker@0.1.0` → `inspect`,
/// `pull`.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// A language, compiler or other program that produced a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Tool {
    pub name: String,
    pub version: String,
}

/// No known component names more tools than this.
const TOOLS_MAX: usize = 64;

fn gather_tools(fields: wasmparser::ProducersSectionReader<'_>, tools: &mut BTreeSet<Tool>) {
    for field in fields.into_iter().flatten() {
        for value in field.values.into_iter().flatten() {
            if tools.len() < TOOLS_MAX {
                tools.insert(Tool {
                    name: printable(value.name, limits::NAME_BYTES_MAX),
                    version: printable(value.version, limits::NAME_BYTES_MAX),
                });
            }
        }
    }
}

/// Describe what the component has too much of for the validator, for a person. Stores nothing.
fn find_excess(bytes: &[u8]) -> Result<Option<String>, wasmparser::BinaryReaderError> {
    let (mut declared, mut nested) = (0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        match &payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => nested += 1,
            // Code, data, and sections that nothing depends on: only the size of the whole component limits them.
            Payload::CodeSectionStart { .. }
            | Payload::CodeSectionEntry(_)
            | Payload::DataSection(_)
            | Payload::CustomSection(_) => {}
            other => {
                let range = other.as_section().map(|(_, range)| range);
                declared += range.map_or(0, |range| range.len());
            }
        }
        if declared > DECLARATION_BYTES_MAX {
            return Ok(Some(format!(
                "its declarations have more than {DECLARATION_BYTES_MAX} bytes"
            )));
        }
        if nested > NESTED_MAX {
            return Ok(Some(format!(
                "it has more than {NESTED_MAX} modules and components within it"
            )));
        }
    }
    Ok(None)
}

/// The imports and exports of a component, and the tools that it names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Facts {
    imports: Imports,
    exports: Vec<String>,
    tools: BTreeSet<Tool>,
}

impl Facts {
    /// Read the facts. The error says why the component is invalid.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if let Some(cause) = find_excess(bytes).map_err(describe)? {
            return Err(cause);
        }
        // All features that this parser knows: if the engine does not allow one, its compiler reports that better.
        let types = Validator::new_with_features(WasmFeatures::all())
            .validate_all(bytes)
            .map_err(describe)?;
        let (mut imports, mut exports) = (Imports::new(), Vec::new());
        let (mut depth, mut names) = (0_usize, 0_usize);
        let mut tools = BTreeSet::new();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(describe)? {
                // Modules and components within the component, which supplies their imports.
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        let name = import.map_err(describe)?.name.name;
                        let item = types.as_ref().component_item_for_import(name);
                        let used: BTreeSet<String> = match item.map(|item| item.ty) {
                            Some(ComponentEntityType::Instance(id)) => types[id]
                                .exports
                                .iter()
                                .filter(|(_, item)| matches!(item.ty, ComponentEntityType::Func(_)))
                                .map(|(name, _)| name.clone())
                                .collect(),
                            _ => BTreeSet::new(),
                        };
                        names += 1 + used.len();
                        imports.insert(name.to_owned(), used);
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        names += 1;
                        exports.push(export.map_err(describe)?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) => {
                    // Nothing depends on this section, so an invalid one is ignored.
                    if let KnownCustom::Producers(fields) = section.as_known() {
                        gather_tools(fields, &mut tools);
                    }
                }
                _ => {}
            }
            if names > NAMES_MAX {
                return Err(format!(
                    "it imports and exports more than {NAMES_MAX} functions and interfaces"
                ));
            }
        }
        Ok(Self {
            imports,
            exports,
            tools,
        })
    }
}

/// The parser's error on one line. It quotes names of the component.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is handed to `map_err`, which gives its error away"
)]
fn describe(error: wasmparser::BinaryReaderError) -> String {
    printable(
        &error.to_string().replace('\n', " "),
        limits::TEXT_BYTES_MAX,
    )
}

/// The bytes of a valid component, and the facts about it.
#[derive(Clone, Debug)]
pub struct Examined {
    pub origin: String,
    /// The digest of the bytes: `sha256:…`.
    pub digest: String,
    pub imports: Imports,
    /// The names of the exports.
    pub exports: Vec<String>,
    /// The tools that the component says it was built with, without duplicates.
    pub tools: BTreeSet<Tool>,
    pub(super) bytes: Bytes,
}

impl Examined {
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(super) fn new(bytes: Bytes, origin: &str, facts: Facts) -> Self {
        Self {
            origin: origin.to_owned(),
            digest: digest(&bytes),
            imports: facts.imports,
            exports: facts.exports,
            tools: facts.tools,
            bytes,
        }
    }

    /// Examine a component in this process, without the limits of a worker process.
    pub fn read(bytes: Bytes, origin: &str) -> Result<Self, PolicyError> {
        super::error::check_file_format(&bytes, origin)?;
        let facts = Facts::read(&bytes).map_err(|cause| PolicyError::Invalid {
            origin: origin.to_owned(),
            cause,
        })?;
        Ok(Self::new(bytes, origin, facts))
    }

    /// Check that the component uses our contract and imports nothing else, with an error that its author understands. The linker
    /// would only say "matching implementation was not found".
    pub fn check_contract(&self) -> Result<(), PolicyError> {
        let origin = || self.origin.clone();
        for (name, used) in &self.imports {
            let version = name.rsplit_once('@').map_or("", |(_, version)| version);
            if is_ours(name) && version != CONTRACT_VERSION {
                return Err(PolicyError::WrongContract {
                    origin: origin(),
                    wants: printable(name, limits::TEXT_BYTES_MAX),
                });
            }
            let unknown = match contract::find_functions(name) {
                Some(known) => used.iter().find(|it| !known.contains(&it.as_str())),
                None => None,
            };
            if let Some(function) = unknown {
                return Err(PolicyError::UnknownFunction {
                    origin: origin(),
                    function: printable(function, limits::TEXT_BYTES_MAX),
                    interface: name.clone(),
                });
            }
            let is_offered = contract::find_functions(name).is_some() || wasi::is_linked(name);
            if !is_offered {
                return Err(PolicyError::UnknownImport {
                    origin: origin(),
                    import: printable(name, limits::TEXT_BYTES_MAX),
                });
            }
        }
        let wanted = format!("{CONTRACT}/policy@{CONTRACT_VERSION}");
        if self.exports.contains(&wanted) {
            return Ok(());
        }
        let other = format!("{CONTRACT}/policy@");
        match self.exports.iter().find(|name| name.starts_with(&other)) {
            Some(name) => Err(PolicyError::WrongContract {
                origin: origin(),
                wants: printable(name, limits::TEXT_BYTES_MAX),
            }),
            None => Err(PolicyError::NotAPolicy { origin: origin() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_POLICY;

    #[test]
    fn the_default_policy_uses_what_it_needs_and_no_more() {
        let examined = Examined::read(Bytes::from_static(DEFAULT_POLICY), "it").unwrap();
        examined.check_contract().unwrap();
        let docker = &examined.imports["refit:policy/docker@0.1.0"];
        for function in ["containers", "inspect", "pull", "recreate"] {
            assert!(docker.contains(function), "{docker:?}");
        }
        assert!(
            examined
                .exports
                .contains(&"refit:policy/policy@0.1.0".to_owned())
        );
    }

    #[test]
    fn error_shows_no_control_characters_of_the_component() {
        let component: &[u8] =
            include_bytes!("../../../fuzz/corpus/component/import-with-escape.wasm");
        let error = Examined::read(Bytes::from_static(component), "it").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("\\u{1b}[31m") && !text.contains('\u{1b}'),
            "{text:?}"
        );
    }

    #[test]
    fn bytes_that_are_cut_short_are_no_component() {
        let half = Bytes::from_static(&DEFAULT_POLICY[..DEFAULT_POLICY.len() / 2]);
        let error = Examined::read(half, "half.wasm").unwrap_err();
        assert!(matches!(error, PolicyError::Invalid { .. }), "{error}");
    }
}
