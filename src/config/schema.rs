//! The JSON Schema of the configuration, for editors (`config/sluicegate.schema.json`).
//!
//! Made by asking the reader itself: every key that it knows is tried with values of every form, and what it takes is what
//! the schema says. So there is nothing to keep in step, and no second description of each type. What a key is for comes
//! from the comments of `sluicegate.full.yaml`.

use super::{
    problems::Problems,
    raw,
    source::{self, Shaped},
};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const FULL: &str = include_str!("../../config/sluicegate.full.yaml");

/// No word of any list of words.
const NO_WORD: &str = "no word of any list";
/// Texts with units, one of each kind that the reader knows, and a path.
const WITH_UNITS: &[&str] = &["1s", "1MiB", "1/s", "127.0.0.0/8"];

/// The schema, of draft 2020-12.
pub fn schema() -> Value {
    let example = serde_json::to_value(raw::Config::example()).unwrap_or_default();
    let mut described = Described { example: example.clone(), comments: comments(FULL) };
    let mut schema = described.of(&mut Vec::new(), &example, &default());
    let members = [
        ("$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("title", "Sluicegate's configuration"),
        (
            "description",
            "Durations, sizes and rates have units: 200ms, 64MiB, 100/s. ${VARIABLE} is the environment's.",
        ),
    ];
    let Some(map) = schema.as_object_mut() else { return schema };
    for (name, text) in members {
        map.insert(name.into(), text.into());
    }
    schema
}

fn default() -> Value {
    serde_json::to_value(raw::Config::default()).unwrap_or_default()
}

struct Described {
    example: Value,
    comments: HashMap<String, String>,
}

impl Described {
    /// The schema of what is at `path`, of which `value` is an example.
    fn of(&mut self, path: &mut Vec<String>, value: &Value, default: &Value) -> Value {
        let mut schema = match value {
            Value::Object(map) if !map.is_empty() => {
                let mut properties = Map::new();
                for (key, value) in map {
                    path.push(key.clone());
                    let schema = self.of(path, value, default.get(key).unwrap_or(&Value::Null));
                    properties.insert(key.clone(), schema);
                    path.pop();
                }
                // A key with nothing behind it is as good as absent.
                let map =
                    json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": false });
                // A word in place of a map is what it is by default.
                if default.is_string() { json!({ "anyOf": [{ "enum": [default] }, map] }) } else { map }
            }
            Value::Array(list) if list.first().is_some_and(Value::is_object) => {
                path.push("0".into());
                let items = self.of(path, &list[0], &list[0]);
                path.pop();
                json!({ "type": ["array", "null"], "items": items })
            }
            _ => self.leaf(path),
        };
        let Some(members) = schema.as_object_mut() else { return schema };
        let name: Vec<_> = path.iter().filter(|step| *step != "0").map(String::as_str).collect();
        if let Some(comment) = self.comments.get(&name.join(".")) {
            members.insert("description".into(), comment.as_str().into());
        }
        if !default.is_null() && !default.is_object() && !path.is_empty() {
            members.insert("default".into(), default.clone());
        }
        schema
    }

    fn leaf(&self, path: &[String]) -> Value {
        let takes = |value: Value| self.problem(path, value).is_none();
        let mut types = Vec::new();
        let mut words = Vec::new();
        match self.problem(path, NO_WORD.into()) {
            None => types.push("string"),
            Some(_) if WITH_UNITS.iter().any(|text| takes((*text).into())) => types.push("string"),
            Some(problem) => {
                words = expected(&problem).into_iter().filter(|word| takes(word.as_str().into())).collect()
            }
        }
        if takes(json!(0.5)) {
            types.push("number");
        } else if takes(json!(1)) || takes(json!(3)) {
            types.push("integer");
        }
        if takes(json!(true)) {
            types.push("boolean");
        }
        let list = ["text", "1s", "cpu"].into_iter().map(|item| json!([item])).chain([json!([1])]).any(&takes);
        if list {
            types.push("array");
        }
        if [json!({}), json!({ "latest": 1 }), json!({ "ratio": 2 })].into_iter().any(takes) {
            types.push("object");
        }
        types.push("null");
        if words.is_empty() {
            return json!({ "type": types });
        }
        words.sort();
        match types.as_slice() {
            ["null"] => {
                json!({ "enum": words.iter().map(|word| json!(word)).chain([Value::Null]).collect::<Vec<_>>() })
            }
            types => json!({ "anyOf": [{ "enum": words }, { "type": types }] }),
        }
    }

    /// What the reader says of `value` at `path`, if it does not take it.
    fn problem(&self, path: &[String], value: Value) -> Option<String> {
        let mut tree = self.example.clone();
        let place = path.iter().try_fold(&mut tree, |tree, step| match tree {
            Value::Array(list) => list.first_mut(),
            tree => tree.get_mut(step.as_str()),
        });
        *place? = value;
        let mut problems = Problems::new("");
        let _: raw::Config = source::read(tree, &mut problems);
        problems.list.into_iter().next().map(|problem| problem.text)
    }
}

/// The words that a problem says would be valid.
fn expected(problem: &str) -> Vec<String> {
    let Some((_, words)) = problem.split_once(", expected ") else { return Vec::new() };
    let words = words.replace(" or ", ", ").replace(['`', '"'], "");
    words.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

/// What the comments behind keys say, by path. Of a key whose value begins on its own line only.
fn comments(text: &str) -> HashMap<String, String> {
    let mut comments = HashMap::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let code = line.trim_start();
        let code_at = line.len() - code.len() + if code.starts_with("- ") { 2 } else { 0 };
        let Some((key, rest)) = code.trim_start_matches("- ").split_once(':') else { continue };
        if key.starts_with('#') || key.contains(' ') {
            continue;
        }
        above.retain(|(at, _)| *at < code_at);
        above.push((code_at, key));
        if let Some((_, comment)) = rest.split_once(" # ") {
            let path: Vec<_> = above.iter().map(|(_, key)| *key).collect();
            comments.insert(path.join("."), comment.trim().to_owned());
        }
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// As much of JSON Schema as the schema uses.
    fn check(path: &str, schema: &Value, value: &Value, wrong: &mut Vec<String>) {
        if let Some(choices) = schema["anyOf"].as_array() {
            let fits = |choice: &Value| {
                let mut wrong = Vec::new();
                check(path, choice, value, &mut wrong);
                wrong.is_empty()
            };
            if !choices.iter().any(fits) {
                wrong.push(format!("{path}: none of the forms"));
            }
            return;
        }
        if let Some(words) = schema["enum"].as_array() {
            if !words.contains(value) {
                wrong.push(format!("{path}: {value} is none of the words"));
            }
            return;
        }
        let is = |kind: &str| match kind {
            "null" => value.is_null(),
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            other => panic!("{other}"),
        };
        if !schema["type"].as_array().unwrap().iter().any(|kind| is(kind.as_str().unwrap())) {
            wrong.push(format!("{path}: {value} is not {}", schema["type"]));
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            match (schema["properties"].get(key), schema["additionalProperties"] == false) {
                (Some(schema), _) => check(&format!("{path}.{key}"), schema, value, wrong),
                (None, true) => wrong.push(format!("{path}.{key}: unknown")),
                (None, false) => {}
            }
        }
        if let Some(items) = schema.get("items") {
            for (at, value) in value.as_array().into_iter().flatten().enumerate() {
                check(&format!("{path}[{at}]"), items, value, wrong);
            }
        }
    }

    fn wrong(text: &str) -> Vec<String> {
        let tree = source::tree(text, &mut Problems::new(""));
        let mut wrong = Vec::new();
        check("", &schema(), &tree, &mut wrong);
        wrong
    }

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
    }

    #[test]
    fn the_file_is_what_the_program_prints() {
        let file = fs::read_to_string(folder().join("sluicegate.schema.json")).unwrap_or_default();
        let printed = format!("{:#}\n", schema());
        assert!(file == printed, "run `sluicegate schema > config/sluicegate.schema.json`");
    }

    #[test]
    fn what_the_program_takes_the_schema_takes() {
        for entry in fs::read_dir(folder()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "yaml") && !path.ends_with("keys.example.yaml") {
                let text = fs::read_to_string(&path).unwrap();
                assert_eq!(wrong(&text), [""; 0], "{}", path.display());
                let schema = "# yaml-language-server: $schema=sluicegate.schema.json";
                assert_eq!(text.lines().next(), Some(schema), "{}", path.display());
            }
        }
        for text in [
            "admin: null\ngrants:\n",
            "models: { directory: [a, b], load: [x], defaults: { versions: [1, 3], instances: 2, batching: { enabled: true } } }",
            "models: { load: none, defaults: { versions: all, instances: auto, batching: { enabled: auto } } }",
            "limits: { rate: [{ name: a, limit: 5/day, burst: 3 }], size: { body: 1MiB }, concurrency: { per_identity: 3 } }",
            "models: { defaults: { cache: { memory: 1MiB, scope: model } } }",
            "telemetry: { otlp: { endpoint: \"http://collector:4317\", sample: 0.01 } }",
        ] {
            assert_eq!(wrong(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_the_program_refuses_for_its_form_the_schema_refuses() {
        for text in [
            "listn: []",
            "limits: { size: { bodi: 1MiB } }",
            "listen: [{ adress: \"127.0.0.1:1\" }]",
            "limits: { size: { body: true } }",
            "auth: { anonymous: sometimes }",
            "runtime: { kind: threads }",
            "grpc: { web: 1 }",
            "models: { defaults: { cache: maybe } }",
            "models: { defaults: { cache: { size: 1MiB } } }",
            "grants: { to: [anonymous] }",
            "telemetry: { metrics: { on_api: \"maybe\" } }",
        ] {
            assert!(!wrong(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn keys_say_what_they_are_for() {
        let schema = schema();
        let described = &schema["properties"]["limits"]["properties"]["size"]["properties"]["body"];
        assert_eq!(described["description"], "a REST body or gRPC message");
        assert_eq!(described["default"], "64MiB");
    }
}
