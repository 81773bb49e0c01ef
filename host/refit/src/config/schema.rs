//! The JSON Schema of `refit.toml`, for completion and checks in editors, and for the tables of docs/configuration.md.
//!
//! It is generated from the types in [`super::keys`], their comments and their defaults. If a value has a special grammar, the type
//! that parses it decides, and the schema has the nearest pattern.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::Config;

/// The output of `refit config schema`.
pub fn text() -> String {
    let text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text + "\n"
}

/// Draft 7, which the TOML plugins of editors support.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        // A person finds all of a table in one place, and some plugins resolve no references.
        settings.inline_subschemas = true;
    });
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let mut schema = schema.to_value();
    without_null(&mut schema);
    schema
}

/// Remove `null`, which TOML lacks: an optional key is left out.
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
            // Defaults of tables are values and no schemas, but they cannot contain `null` either.
            for (_, below) in object.iter_mut() {
                without_null(below);
            }
            object.retain(|_, below| !below.is_null());
        }
        Value::Array(list) => list.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// A policy: a file, or a versioned reference into a registry.
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
