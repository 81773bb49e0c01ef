//! Generates the tables of keys in docs/configuration.md from the schema. The text between them is written by hand, and stays.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Config, schema};

/// The start of a table: `<!-- keys of [limits] -->`, `<!-- keys of [[policy.keys]] -->`, or with [`TOP`] for top-level keys.
const BEGIN: &str = "<!-- keys of ";
const END: &str = "<!-- end of keys -->";
const TOP: &str = "the top level";

const HEAD: &str = "| key | default | meaning |\n| --- | --- | --- |\n";

/// Why a page cannot be filled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    #[error("line {line}: there is no `{table}` in the configuration")]
    NoSuchTable { line: usize, table: String },
    #[error("line {line}: the table that begins here has no `{END}`")]
    NoEnd { line: usize },
    #[error(
        "nothing says where the keys of `{0}` are to be: a line `{BEGIN}{0} -->`, and one `{END}`"
    )]
    NoPlace(String),
}

/// The page with generated tables.
pub fn fill_page(page: &str) -> Result<String, PageError> {
    let tables = tables();
    let mut missing: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let mut filled = String::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        filled.push_str(line);
        filled.push('\n');
        let named = line.strip_prefix(BEGIN);
        let Some(name) = named.and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let line = at + 1;
        let table = tables.iter().find(|table| table.name == name);
        let table = table.ok_or_else(|| PageError::NoSuchTable {
            line,
            table: name.to_owned(),
        })?;
        missing.remove(name);
        if !lines.by_ref().any(|(_, line)| line == END) {
            return Err(PageError::NoEnd { line });
        }
        filled.push('\n');
        filled.push_str(&table.text);
        filled.push('\n');
        filled.push_str(END);
        filled.push('\n');
    }
    match missing.first() {
        Some(name) => Err(PageError::NoPlace((*name).to_owned())),
        None => Ok(filled),
    }
}

/// The keys of one table of the configuration, as Markdown.
struct Table {
    name: String,
    text: String,
}

fn tables() -> Vec<Table> {
    // The schema sorts its keys alphabetically; the types keep related keys together.
    let text = serde_json::to_string(&Config::default()).unwrap_or_default();
    let order = serde_json::from_str(&text).unwrap_or_default();
    let mut tables = Vec::new();
    collect("", &schema::schema(), &order, &mut tables);
    tables
}

/// Collect a table and the tables within it. A table with arbitrary keys is a single key.
fn collect(path: &str, schema: &Value, order: &Order, tables: &mut Vec<Table>) {
    let mut rows = String::new();
    let mut below = Vec::new();
    for (key, schema) in sort_by_type_order(schema, order) {
        let inner = match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        if is_table(schema) {
            collect(&inner, schema, order.child(key), &mut below);
            continue;
        }
        rows.push_str(&row(key, &default(schema), schema));
        if is_table(&schema["items"]) {
            below.push(Table {
                name: format!("[[{inner}]]"),
                text: array_of_tables_text(&schema["items"]),
            });
        }
    }
    if !rows.is_empty() {
        let name = match path {
            "" => TOP.to_owned(),
            path => format!("[{path}]"),
        };
        tables.push(Table {
            name,
            text: format!("{HEAD}{rows}"),
        });
    }
    tables.append(&mut below);
}

fn is_table(schema: &Value) -> bool {
    schema["properties"].is_object()
}

/// The keys of an array of tables, with the required ones first.
fn array_of_tables_text(schema: &Value) -> String {
    let required = schema["required"].as_array().into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    let order = Order(
        required
            .iter()
            .map(|it| ((*it).to_owned(), Order::default()))
            .collect(),
    );
    let rows: String = sort_by_type_order(schema, &order)
        .into_iter()
        .map(|(key, schema)| match required.contains(&key) {
            true => row(key, "required", schema),
            false => row(key, &default(schema), schema),
        })
        .collect();
    format!("{HEAD}{rows}")
}

fn sort_by_type_order<'a>(schema: &'a Value, order: &Order) -> Vec<(&'a str, &'a Value)> {
    let keys = schema["properties"].as_object().into_iter().flatten();
    let mut keys: Vec<(&str, &Value)> = keys.map(|(key, schema)| (key.as_str(), schema)).collect();
    keys.sort_by_key(|(key, _)| order.position_of(key));
    keys
}

/// Names in the order of the types.
#[derive(Default)]
struct Order(Vec<(String, Order)>);

impl Order {
    /// The position of a key. Unknown keys come last.
    fn position_of(&self, key: &str) -> usize {
        let place = self.0.iter().position(|(name, _)| name == key);
        place.unwrap_or(usize::MAX)
    }

    fn child(&self, key: &str) -> &Self {
        static NONE: Order = Order(Vec::new());
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map_or(&NONE, |(_, order)| order)
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Names)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Order;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Order, A::Error> {
        let mut names = Vec::new();
        while let Some(entry) = map.next_entry()? {
            names.push(entry);
        }
        Ok(Order(names))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Order, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Order::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_unit<E>(self) -> Result<Order, E> {
        Ok(Order::default())
    }
}

fn row(key: &str, default: &str, schema: &Value) -> String {
    let meaning = schema["description"].as_str().unwrap_or_default();
    // A comment is wrapped, and a cell is one line.
    let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
    format!(
        "| `{key}` | {default} | {} |\n",
        meaning.replace('|', "\\|")
    )
}

/// The default as in the file.
fn default(schema: &Value) -> String {
    match &schema["default"] {
        Value::Null => "unset".to_owned(),
        Value::Number(number) => number.to_string(),
        other => format!("`{}`", toml(other).replace('|', "\\|")),
    }
}

fn toml(value: &Value) -> String {
    match value {
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(toml).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(table) if table.is_empty() => "{}".to_owned(),
        Value::Object(table) => {
            let entries = table
                .iter()
                .map(|(key, value)| format!("{key} = {}", toml(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        // JSON's strings, numbers and booleans are valid TOML, too.
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> String {
        let tables = tables();
        let places = tables.iter();
        places
            .map(|table| format!("{BEGIN}{} -->\n{END}\n", table.name))
            .collect()
    }

    #[test]
    fn text_between_the_tables_stays() {
        let page = fill_page(&format!("before\n{}after\n", places())).unwrap();
        assert!(page.starts_with("before\n") && page.ends_with("after\n"));
        assert!(
            page.contains("\n| `grace_seconds` | 5 | How long it must keep running. |\n"),
            "{page}"
        );
        assert!(page.contains("| `containers` | `[\"ws-*\"]` |"), "{page}");
        assert!(page.contains("| `engine` | unset |"), "{page}");
        assert!(page.contains("| `name` | required |"), "{page}");
        assert_eq!(
            fill_page(&page).unwrap(),
            page,
            "a second time changes nothing"
        );
    }

    #[test]
    fn page_with_a_missing_or_additional_table_fails() {
        let page = places();
        let without = page.replace(&format!("{BEGIN}[proof] -->\n{END}\n"), "");
        assert_ne!(without, page);
        assert_eq!(
            fill_page(&without),
            Err(PageError::NoPlace("[proof]".into()))
        );
        assert_eq!(
            fill_page(&format!("\n{BEGIN}[prof] -->\n{END}\n{page}")),
            Err(PageError::NoSuchTable {
                line: 2,
                table: "[prof]".into()
            })
        );
        assert_eq!(
            fill_page(&format!("{page}{BEGIN}[proof] -->\n")),
            Err(PageError::NoEnd {
                line: page.lines().count() + 1
            })
        );
    }
}
