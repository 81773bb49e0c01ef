//! The JSON Schema of `refit.toml`: editors complete and check by it, and the tables of docs/configuration.md are made of it.
//!
//! It is made of the types in [`super::keys`], their comments and their defaults. Where a value has a grammar of its own, the
//! type that parses it is the judge, and the schema here says as much as a pattern can.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::Config;

/// As it is printed by `refit config schema`.
pub fn text() -> String {
    let text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text + "\n"
}

/// Of draft 7, which the editors' plugins for TOML know.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        // A reader of a table finds all of it in one place, and so do those plugins that resolve no references.
        settings.inline_subschemas = true;
    });
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let mut schema = schema.to_value();
    without_null(&mut schema);
    schema
}

/// TOML has no null: what may be left out is left out.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|it| it != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|it| !it.is_null());
            }
            // Defaults of tables are values, and no schemas, but have no null that anybody could write either.
            for (_, below) in object.iter_mut() {
                without_null(below);
            }
            object.retain(|_, below| !below.is_null());
        }
        Value::Array(list) => list.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// A policy: a file, or a reference into a registry that names a version.
pub(super) fn component(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "anyOf": [
            { "not": { "pattern": "^oci://" } },
            { "pattern": "^oci://[^/@]+/.+(:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha256:[0-9a-f]{64})$" },
        ],
    })
}

/// An IP address and a port.
pub(super) fn socket_address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$",
    })
}

/// A number of images, or all of them.
pub(super) fn keep_previous(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "enum": ["all"] },
        ],
    })
}

/// A platform of an image, or nothing.
pub(super) fn platform(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^([A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?)?$",
    })
}
