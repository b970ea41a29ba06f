//! JSON Schema, as much of it as the published schemas use. Stricter than a reader has to be: where
//! properties are named, one that is not named is wrong, so that whatever is printed is published.

use std::path::Path;

use serde_json::Value;

use crate::source;

/// References that are followed one within the other.
const DEPTH_MAX: usize = 64;
/// Words that say nothing of a value.
const NOTES: [&str; 3] = ["$schema", "title", "$defs"];

/// What is wrong with a document by `docs/NAME.schema.json`, or by a part of it (`#/$defs/x`);
/// empty when nothing is.
///
/// # Panics
///
/// When there is no such schema, or it uses a word that is not known here.
pub fn faults(name: &str, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let root = load(&format!("{name}.schema.json"));
    check(&root, &root, value, ("", 0), &mut faults);
    faults
}

/// Fails unless the document is as its schema says.
///
/// # Panics
///
/// As said.
pub fn assert_valid(name: &str, value: &Value) {
    let faults = faults(name, value);
    assert!(faults.is_empty(), "{}\n{value:#}", faults.join("\n"));
}

fn load(file: &str) -> Value {
    let path: &Path = &source::root().join("docs").join(file);
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn check(
    root: &Value,
    schema: &Value,
    value: &Value,
    (at, depth): (&str, usize),
    faults: &mut Vec<String>,
) {
    assert!(depth < DEPTH_MAX, "a schema that refers to itself at {at}");
    let words = schema.as_object().expect("a schema is an object");
    let mut fault = |what: String| faults.push(format!("{at}: {what}"));
    for (word, says) in words {
        match word.as_str() {
            "type" => {
                let is = |name: &Value| has_type(value, name.as_str().expect("a type's name"));
                let is_right = says
                    .as_array()
                    .map_or_else(|| is(says), |any| any.iter().any(is));
                if !is_right {
                    fault(format!("{value} is not {says}"));
                }
            }
            "const" if value != says => fault(format!("{value} is not {says}")),
            "enum" if !says.as_array().expect("values").contains(value) => {
                fault(format!("{value} is none of {says}"));
            }
            "minimum" | "maximum" => {
                let limit = says.as_f64().expect("a number");
                let is_wrong = value.as_f64().is_some_and(|it| match word.as_str() {
                    "minimum" => it < limit,
                    _ => it > limit,
                });
                if is_wrong {
                    fault(format!("{value} is not within {word} {says}"));
                }
            }
            "pattern" => {
                assert_eq!(
                    says, "^([0-9a-f]{32}|[0-9a-f]{64})$",
                    "the one that is known"
                );
                let is_wrong = value.as_str().is_some_and(|text| {
                    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                    ![32, 64].contains(&text.len()) || !text.bytes().all(is_hex)
                });
                if is_wrong {
                    fault(format!("{value} is no digest"));
                }
            }
            "required" => {
                for name in says.as_array().expect("names") {
                    let name = name.as_str().expect("a name");
                    if value.is_object() && value.get(name).is_none() {
                        fault(format!("{name} is missing"));
                    }
                }
            }
            "const"
            | "enum"
            | "properties"
            | "additionalProperties"
            | "items"
            | "oneOf"
            | "$ref" => {}
            note if NOTES.contains(&note) => {}
            other => panic!("a word that is not known: {other}"),
        }
    }
    check_parts(root, schema, value, (at, depth), faults);
}

/// The words that lead to other schemas.
fn check_parts(
    root: &Value,
    schema: &Value,
    value: &Value,
    (at, depth): (&str, usize),
    faults: &mut Vec<String>,
) {
    let depth = depth + 1;
    if let Some(reference) = schema.get("$ref") {
        let reference = reference.as_str().expect("a reference");
        let (file, part) = reference.split_once('#').unwrap_or((reference, ""));
        let loaded = (!file.is_empty()).then(|| load(file));
        let root = loaded.as_ref().unwrap_or(root);
        let part = root
            .pointer(part)
            .unwrap_or_else(|| panic!("no {reference}"));
        check(root, part, value, (at, depth), faults);
    }
    if let Some(choices) = schema.get("oneOf") {
        let choices = choices.as_array().expect("schemas").iter();
        let tried: Vec<Vec<String>> = choices
            .map(|choice| {
                let mut faults = Vec::new();
                check(root, choice, value, (at, depth), &mut faults);
                faults
            })
            .collect();
        if tried.iter().filter(|faults| faults.is_empty()).count() != 1 {
            // That which is least wrong is most likely what was meant.
            let nearest = tried.into_iter().min_by_key(Vec::len).unwrap_or_default();
            faults.push(format!("{at}: not one of several; the nearest:"));
            faults.extend(nearest);
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (number, value) in values.iter().enumerate() {
            let at = format!("{at}/{number}");
            check(root, items, value, (&at, depth), faults);
        }
    }
    let Some(fields) = value.as_object() else {
        return;
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties");
    let is_closed = properties.is_some()
        && !schema
            .as_object()
            .is_some_and(|it| it.contains_key("oneOf"));
    for (name, value) in fields {
        let known = properties.and_then(|known| known.get(name)).or(additional);
        let at = format!("{at}/{name}");
        match known {
            Some(schema) => check(root, schema, value, (&at, depth), faults),
            None if is_closed => faults.push(format!("{at}: is not published")),
            None => {}
        }
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("a type that is not known: {other}"),
    }
}
