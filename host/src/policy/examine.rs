//! What a component is and what it wants, read from its bytes. Nothing of it is compiled here, and nothing of it runs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use wasmparser::component_types::ComponentEntityType;
use wasmparser::{KnownCustom, Parser, Payload, Validator, WasmFeatures};

use super::contract::{self, CONTRACT, CONTRACT_VERSION, is_ours};
use super::{PolicyError, digest, error, limits, wasi};
use crate::printable::printable;

/// The interfaces that a component imports, and what it uses of each: `refit:policy/docker@0.1.0` → `inspect`, `pull`.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// A language, a compiler or another program that had a hand in a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Tool {
    pub name: String,
    pub version: String,
}

/// More than this no component was seen to name.
const TOOLS_MAX: usize = 64;

fn gather(fields: wasmparser::ProducersSectionReader<'_>, tools: &mut BTreeSet<Tool>) {
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

/// Bytes of all that a component declares: types, imports, exports, functions, aliases, instances and the like. Python's, the largest
/// example, declares 314 KiB. Types take the most memory, in the daemon itself: 0.7 MB of them took 37 MB to validate (2026-11-29).
const DECLARATION_BYTES_MAX: usize = 1 << 20;

/// Modules and components within a component, at any depth. Python's has 40. An empty one has ten bytes, and took 1.2 KB to validate
/// (2026-11-29).
const NESTED_MAX: usize = 1000;

/// What of a component is too much for the validator, for a person. Nothing of it is kept.
fn excess(bytes: &[u8]) -> Result<Option<String>, wasmparser::BinaryReaderError> {
    let (mut declared, mut nested) = (0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        match &payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => nested += 1,
            // What it does, its data, and what nobody depends on: as large as a component may be.
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

/// Bytes that are a valid component, and what they say of themselves.
#[derive(Clone, Debug)]
pub struct Examined {
    pub origin: String,
    /// `sha256:…` of the bytes.
    pub digest: String,
    pub imports: Imports,
    /// Names of what it exports.
    pub exports: Vec<String>,
    /// What it says that it was built with, each once.
    pub tools: BTreeSet<Tool>,
    pub(super) bytes: Bytes,
}

impl Examined {
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn read(bytes: Bytes, origin: &str) -> Result<Self, PolicyError> {
        error::admit(&bytes, origin)?;
        let invalid = |cause: wasmparser::BinaryReaderError| PolicyError::Invalid {
            origin: origin.to_owned(),
            // It quotes names of the component.
            cause: printable(
                &cause.to_string().replace('\n', " "),
                limits::TEXT_BYTES_MAX,
            ),
        };
        if let Some(cause) = excess(&bytes).map_err(invalid)? {
            return Err(PolicyError::Invalid {
                origin: origin.to_owned(),
                cause,
            });
        }
        // All that this parser knows: what the engine does not allow, its compiler refuses, and says so better.
        let types = Validator::new_with_features(WasmFeatures::all())
            .validate_all(&bytes)
            .map_err(invalid)?;
        let (mut imports, mut exports) = (Imports::new(), Vec::new());
        let mut depth = 0_usize;
        let mut tools = BTreeSet::new();
        for payload in Parser::new(0).parse_all(&bytes) {
            match payload.map_err(invalid)? {
                // Modules and components within it; what they import, it gives them.
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        let name = import.map_err(invalid)?.name.name;
                        let item = types.as_ref().component_item_for_import(name);
                        let used = match item.map(|item| item.ty) {
                            Some(ComponentEntityType::Instance(id)) => types[id]
                                .exports
                                .iter()
                                .filter(|(_, item)| matches!(item.ty, ComponentEntityType::Func(_)))
                                .map(|(name, _)| name.clone())
                                .collect(),
                            _ => BTreeSet::new(),
                        };
                        imports.insert(name.to_owned(), used);
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        exports.push(export.map_err(invalid)?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) => {
                    // Nobody depends on it, so one that makes no sense says nothing.
                    if let KnownCustom::Producers(fields) = section.as_known() {
                        gather(fields, &mut tools);
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            origin: origin.to_owned(),
            digest: digest(&bytes),
            imports,
            exports,
            tools,
            bytes,
        })
    }

    /// Whether it speaks our contract and wants nothing else, said in words that its author understands. The linker would say
    /// "matching implementation was not found".
    pub(crate) fn check_contract(&self) -> Result<(), PolicyError> {
        let origin = || self.origin.clone();
        for (name, used) in &self.imports {
            let version = name.rsplit_once('@').map_or("", |(_, version)| version);
            if is_ours(name) && version != CONTRACT_VERSION {
                return Err(PolicyError::WrongContract {
                    origin: origin(),
                    wants: printable(name, limits::TEXT_BYTES_MAX),
                });
            }
            let unknown = match contract::functions_of(name) {
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
            let is_offered = contract::functions_of(name).is_some() || wasi::is_linked(name);
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
    use crate::policy::DEFAULT_POLICY;

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

    /// A component of these sections, each an id and its bytes.
    fn component(sections: impl Iterator<Item = (u8, Vec<u8>)>) -> Bytes {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        for (id, content) in sections {
            bytes.push(id);
            let mut length = content.len();
            while length >= 0x80 {
                bytes.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend(content);
        }
        bytes.into()
    }

    /// Small to write, and gigabytes while they are validated.
    #[test]
    fn component_that_declares_too_much_is_refused_before_it_is_validated() {
        const TYPES: u8 = 7;
        const COMPONENT: u8 = 4;
        // A vector of one type, `string`, again and again.
        let types = component((0..2_000_000).map(|_| (TYPES, vec![1, 0x73])));
        let empty = b"\0asm\x0d\0\x01\0".to_vec();
        let nested = component((0..20_000).map(|_| (COMPONENT, empty.clone())));
        for (bytes, why) in [
            (types, "its declarations have"),
            (nested, "modules and components"),
        ] {
            let began = std::time::Instant::now();
            let error = Examined::read(bytes, "it").unwrap_err();
            assert!(matches!(error, PolicyError::Invalid { .. }), "{error}");
            let text = crate::diagnostic::Diagnostic::of(&error).sentence();
            assert!(text.contains(why), "{text}");
            assert!(began.elapsed() < std::time::Duration::from_secs(5));
        }
    }

    #[test]
    fn bytes_that_are_cut_short_are_no_component() {
        let half = Bytes::from_static(&DEFAULT_POLICY[..DEFAULT_POLICY.len() / 2]);
        let error = Examined::read(half, "half.wasm").unwrap_err();
        assert!(matches!(error, PolicyError::Invalid { .. }), "{error}");
    }
}
