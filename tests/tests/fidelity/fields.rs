//! What an engine's interface has, read from the model of the client library: a field that an upgrade adds is found here, and
//! fails the test that does not know it.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde_json::Value;

/// The fields of a structure under the names that the engine gives them: what it asks a document for.
pub(crate) fn of<'de, T: Deserialize<'de>>() -> BTreeSet<&'static str> {
    let mut asked = Asked(&[]);
    let _ = T::deserialize(&mut asked);
    assert!(
        !asked.0.is_empty(),
        "`{}` asked for no field: is it no structure any more?",
        std::any::type_name::<T>()
    );
    asked.0.iter().copied().collect()
}

struct Asked(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Asked {
    type Error = Nothing;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Nothing> {
        Err(Nothing::custom("there is nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Nothing> {
        self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[derive(Debug)]
struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

impl std::error::Error for Nothing {}

impl serde::de::Error for Nothing {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// Every field of the model is in one of the documents that a test uses, or in the table of those that it cannot use, each with
/// the reason; and nothing else is.
#[track_caller]
pub(crate) fn all_known<'de, T: Deserialize<'de>>(
    used: &[&Value],
    not_used: &[(&'static str, &'static str)],
) {
    let fields = of::<T>();
    let used: BTreeSet<&str> = used
        .iter()
        .flat_map(|document| document.as_object().into_iter().flatten())
        .map(|(key, _)| key.as_str())
        .collect();
    let model = std::any::type_name::<T>()
        .rsplit("::")
        .next()
        .unwrap_or_default();
    for field in &fields {
        let reason = not_used.iter().any(|(name, _)| name == field);
        assert!(
            used.contains(field) || reason,
            "`{model}` has a field `{field}` that no round trip sets: set it in one of the documents, or say in the table why \
             it cannot be set here"
        );
        assert!(
            !(used.contains(field) && reason),
            "`{field}` of `{model}` is set and also said to be unusable"
        );
    }
    for (field, _) in not_used {
        assert!(
            fields.contains(field),
            "`{model}` has no field `{field}` any more"
        );
    }
}

#[test]
fn the_fields_of_a_model_are_read_from_the_model() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    #[expect(dead_code, reason = "only its shape is used")]
    struct Model {
        cap_add: Option<Vec<String>>,
        memory: Option<i64>,
    }
    assert_eq!(of::<Model>(), BTreeSet::from(["CapAdd", "Memory"]));
}
