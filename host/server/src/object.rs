//! A JSON object in a request. serde would also accept a list for a struct, field by field, so that `[]` would request everything.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A `T` that the client sent as an object.
#[derive(Debug)]
pub(super) struct JsonObject<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = JsonObject<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(JsonObject)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Parse an optional body: an empty one and `null` mean the default.
pub(super) fn parse_optional<T>(body: &[u8]) -> Result<T, serde_json::Error>
where
    T: Default + for<'de> Deserialize<'de>,
{
    if body.is_empty() {
        return Ok(T::default());
    }
    let object: Option<JsonObject<T>> = serde_json::from_slice(body)?;
    Ok(object.map_or_else(T::default, |JsonObject(body)| body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Body {
        name: String,
    }

    #[test]
    fn list_is_no_object() {
        for text in ["[]", r#"["a"]"#, r#""a""#, "1"] {
            let parsed = serde_json::from_str::<JsonObject<Body>>(text);
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{text}: {error}");
        }
        let JsonObject::<Body>(body) = serde_json::from_str(r#"{"name":"a"}"#).unwrap();
        assert_eq!(body, Body { name: "a".into() });
    }

    #[test]
    fn object_stays_strict() {
        for text in [r#"{"names":"a"}"#, r#"{"name":"a","name":"b"}"#] {
            assert!(serde_json::from_str::<JsonObject<Body>>(text).is_err());
        }
    }

    #[test]
    fn body_that_is_left_out_or_null_is_the_default() {
        for text in ["", "null", "{}"] {
            assert_eq!(
                parse_optional::<Body>(text.as_bytes()).unwrap(),
                Body::default()
            );
        }
        for text in ["[]", "0", " "] {
            assert!(parse_optional::<Body>(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
