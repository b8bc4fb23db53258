//! From text to a raw type, with every problem on the way.
//!
//! serde stops at its first error, people want all of them at once. So the YAML becomes a tree first, and whatever serde
//! complains of is taken out of the tree and reported until nothing is left to complain of. Of the
//! configuration's keys this file knows one (see [`underlay`]).

use super::problems::Problems;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;
use std::{collections::HashMap, fmt::Write};

/// A type that can show all of its keys.
pub(super) trait Shaped: DeserializeOwned + Serialize + Default {
    /// A value in which every list has an element and everything optional is there. What is a map in it can only be
    /// written as a map.
    fn example() -> Self;
}

/// A step into a tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

/// The tree of a YAML document; an empty one is a map without keys.
pub(super) fn tree(text: &str, problems: &mut Problems) -> Value {
    // Quotations of the file stay out of messages, which go to logs. And `y` is the name of many a tensor, not the
    // boolean that it was in YAML 1.1.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(Value::Null) => Value::Object(Map::new()),
        Ok(tree) => tree,
        Err(error) => {
            problems.push("", error.to_string());
            Value::Object(Map::new())
        }
    }
}

/// Takes out keys with nothing behind them, as remain when what was below them is commented out. `kept` is a key of the
/// top for which nothing means something.
pub(super) fn drop_empty(tree: &mut Value, kept: &str) {
    walk(tree, &mut Vec::new(), &mut |path, value| {
        if let Value::Object(map) = value {
            map.retain(|key, value| !value.is_null() || (path.is_empty() && key == kept));
        }
    });
}

/// Puts the values of variables where texts say `${VARIABLE}`.
pub(super) fn expand(tree: &mut Value, variable: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) {
    walk(tree, &mut Vec::new(), &mut |path, value| {
        let Value::String(text) = value else { return };
        let mut expanded = String::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find("${") {
            let Some(length) = rest[start..].find('}') else { break };
            let name = &rest[start + 2..start + length];
            expanded.push_str(&rest[..start]);
            match variable(name) {
                Some(value) => {
                    problems.hide(name, &value);
                    expanded.push_str(&value);
                }
                None => problems.unset(shown(path), name),
            }
            rest = &rest[start + length + 1..];
        }
        expanded.push_str(rest);
        *text = expanded;
    });
}

/// Takes out what this version does not have yet. `later` are paths, with `*` for any element of a list.
pub(super) fn refuse_later(tree: &mut Value, later: &[&str], problems: &mut Problems) {
    for path in later {
        let mut found = Vec::new();
        find(tree, &path.split('.').collect::<Vec<_>>(), &mut Vec::new(), &mut found);
        for path in found {
            problems.push("", format!("`{}` is not available in this version", shown(&path)));
            remove(tree, &path);
        }
    }
}

/// Puts `base` under the tree: what the tree does not say, `base` says. `batching` and `cache` are merged key by key, every other
/// value is replaced as a whole: `versions: { latest: 2 }` has nothing in common with what it replaces.
pub(super) fn underlay(tree: &mut Value, base: &impl Serialize) {
    let (Value::Object(tree), Ok(Value::Object(base))) = (tree, serde_json::to_value(base)) else { return };
    for (key, below) in base {
        match (tree.get_mut(&key), below) {
            (None, below) => drop(tree.insert(key, below)),
            (Some(Value::Object(above)), Value::Object(below)) if key == "batching" || key == "cache" => {
                below.into_iter().for_each(|(key, value)| _ = above.entry(key).or_insert(value));
            }
            (Some(_), _) => {}
        }
    }
}

/// Reads `T` out of the tree, reporting and leaving out what does not fit.
pub(super) fn read<T: Shaped>(mut tree: Value, problems: &mut Problems) -> T {
    let shape = serde_json::to_value(T::example()).unwrap_or_default();
    refuse_lists(&mut tree, &shape, &mut Vec::new(), problems);
    // Elements already removed, by list, so that the others keep the numbers that people count.
    let mut removed: HashMap<Vec<Step>, Vec<usize>> = HashMap::new();
    loop {
        let error = match serde_path_to_error::deserialize(&tree) {
            Ok(value) => return value,
            Err(error) => error,
        };
        let path = existing(&tree, error.path().iter());
        let written = as_written(&path, &removed);
        problems.push(shown(&written), explain(&error.inner().to_string(), &path, &shape));
        if let Some((Step::Index(_), list)) = path.split_last()
            && let Some(Step::Index(index)) = written.last()
        {
            removed.entry(list.to_vec()).or_default().push(*index);
        }
        if !remove(&mut tree, &path) {
            return T::default();
        }
    }
}

/// serde reads a struct from a list too, field by field; nobody who writes one means that.
fn refuse_lists(tree: &mut Value, shape: &Value, path: &mut Vec<Step>, problems: &mut Problems) {
    match (tree, shape) {
        (tree @ Value::Array(_), Value::Object(_)) => {
            problems.push(shown(path), "found a list, expected keys with values");
            *tree = Value::Object(Map::new());
        }
        (Value::Object(map), Value::Object(shapes)) => {
            for (key, value) in map {
                path.push(Step::Key(key.clone()));
                refuse_lists(value, shapes.get(key).unwrap_or(&Value::Null), path, problems);
                path.pop();
            }
        }
        (Value::Array(list), Value::Array(shapes)) => {
            for (at, value) in list.iter_mut().enumerate() {
                path.push(Step::Index(at));
                refuse_lists(value, shapes.first().unwrap_or(&Value::Null), path, problems);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The part of serde's path that leads somewhere.
fn existing<'a>(mut tree: &Value, segments: impl Iterator<Item = &'a Segment>) -> Vec<Step> {
    let mut path = Vec::new();
    for segment in segments {
        let (step, next) = match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => (Step::Key(key.clone()), tree.get(key)),
            Segment::Seq { index } => (Step::Index(*index), tree.get(index)),
            Segment::Unknown => break,
        };
        let Some(next) = next else { break };
        path.push(step);
        tree = next;
    }
    path
}

/// The path as it was before elements were removed from lists.
fn as_written(path: &[Step], removed: &HashMap<Vec<Step>, Vec<usize>>) -> Vec<Step> {
    let restore = |(at, step): (usize, &Step)| match step {
        Step::Index(index) => {
            let mut gone = removed.get(&path[..at]).cloned().unwrap_or_default();
            gone.sort_unstable();
            Step::Index(gone.into_iter().fold(*index, |index, gone| if gone <= index { index + 1 } else { index }))
        }
        Step::Key(_) => step.clone(),
    };
    path.iter().enumerate().map(restore).collect()
}

/// serde's words in ours.
fn explain(message: &str, path: &[Step], shape: &Value) -> String {
    let names = |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = names(rest).into_iter();
        let key = names.next().unwrap_or_default();
        return match nearest(&key, names.collect(), path, shape) {
            Some(valid) => format!("unknown key; the nearest valid one is `{valid}`"),
            None => "unknown key; no key is valid here".to_owned(),
        };
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let mut names = names(rest).into_iter();
        let found = names.next().unwrap_or_default();
        return format!("`{found}` is not valid, expected {}", names.collect::<Vec<_>>().join(", "));
    }
    match message.strip_prefix("invalid type: ") {
        Some(rest) => match rest.split_once(", expected struct ") {
            Some((found, _)) => format!("found {found}, expected keys with values"),
            None => format!("found {rest}"),
        },
        None => message.to_owned(),
    }
}

/// The key that was probably meant: one of `siblings`, or the same one where it is valid.
fn nearest(key: &str, siblings: Vec<String>, path: &[Step], shape: &Value) -> Option<String> {
    let close = |sibling: &String| strsim::normalized_damerau_levenshtein(key, sibling);
    let best = siblings.into_iter().max_by(|a, b| close(a).total_cmp(&close(b)));
    if best.as_ref().is_none_or(|best| close(best) < 0.7) {
        let mut elsewhere = None;
        walk(&mut shape.clone(), &mut Vec::new(), &mut |at, _| {
            if elsewhere.is_none() && at != path && matches!(at.last(), Some(Step::Key(name)) if name == key) {
                elsewhere = Some(shown(at));
            }
        });
        return elsewhere.or(best);
    }
    best
}

/// Visits every value, inner ones after the ones that hold them.
fn walk(value: &mut Value, path: &mut Vec<Step>, visit: &mut dyn FnMut(&[Step], &mut Value)) {
    visit(path, value);
    let mut inner = |step: Step, value: &mut Value| {
        path.push(step);
        walk(value, path, visit);
        path.pop();
    };
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| inner(Step::Key(key.clone()), value)),
        Value::Array(list) => list.iter_mut().enumerate().for_each(|(at, value)| inner(Step::Index(at), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn find(tree: &Value, pattern: &[&str], path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
    let Some((first, rest)) = pattern.split_first() else { return found.push(path.clone()) };
    let mut inner = |step: Step, value: &Value| {
        path.push(step);
        find(value, rest, path, found);
        path.pop();
    };
    match tree {
        Value::Array(list) if *first == "*" => list.iter().enumerate().for_each(|(at, v)| inner(Step::Index(at), v)),
        Value::Object(map) => map.get(*first).into_iter().for_each(|v| inner(Step::Key((*first).to_owned()), v)),
        _ => {}
    }
}

/// Removes what is at `path`; false if that is the whole tree.
fn remove(tree: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(tree, |tree, step| match step {
        Step::Key(key) => tree.get_mut(key),
        Step::Index(index) => tree.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
        (Some(Value::Array(list)), Step::Index(index)) if *index < list.len() => {
            list.remove(*index);
            true
        }
        _ => false,
    }
}

/// A path as people write it: `limits.rate[0].by`.
fn shown(path: &[Step]) -> String {
    path.iter().fold(String::new(), |mut text, step| {
        let written = match step {
            Step::Key(key) if text.is_empty() => write!(text, "{key}"),
            Step::Key(key) => write!(text, ".{key}"),
            Step::Index(index) => write!(text, "[{index}]"),
        };
        written.expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        inner: Inner,
        list: Vec<Inner>,
        size: u32,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        max_rows: u32,
        max_delay: u32,
    }

    impl Shaped for Outer {
        fn example() -> Self {
            Self { list: vec![Inner::default()], ..Self::default() }
        }
    }

    fn outer(text: &str) -> (Outer, Vec<String>) {
        let mut problems = Problems::new("test");
        let tree = tree(text, &mut problems);
        let outer = read(tree, &mut problems);
        (outer, problems.list.into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect())
    }

    #[test]
    fn all_problems_are_found_in_one_go_and_the_rest_is_read() {
        let (read, problems) = outer("inner: { max_row: 1, max_delay: x }\nsize: 7\nlits: []\n");
        assert_eq!(read.size, 7);
        assert_eq!(
            problems,
            [
                "inner.max_delay: found string \"x\", expected u32",
                "inner.max_row: unknown key; the nearest valid one is `max_rows`",
                "lits: unknown key; the nearest valid one is `list`",
            ]
        );
    }

    #[test]
    fn elements_keep_their_numbers() {
        let (_, problems) = outer("list: [a, { max_rows: 1 }, b, { max: 1 }]\n");
        let paths: Vec<&str> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(paths, ["list[0]", "list[2]", "list[3].max"]);
    }

    #[test]
    fn a_key_of_another_place_is_pointed_out() {
        let (_, problems) = outer("max_delay: 5\n");
        assert_eq!(problems, ["max_delay: unknown key; the nearest valid one is `inner.max_delay`"]);
    }

    #[test]
    fn an_empty_file_is_all_defaults_and_a_list_is_none() {
        assert_eq!(outer(""), (Outer::default(), Vec::new()));
        assert_eq!(outer("# nothing\n"), (Outer::default(), Vec::new()));
        assert_eq!(outer("- 1\n").1.len(), 1);
    }

    #[test]
    fn a_list_is_not_a_map() {
        assert_eq!(outer("inner: [1, 2]\n").1, ["inner: found a list, expected keys with values"]);
        assert_eq!(outer("list: [[1, 2]]\n").1, ["list[0]: found a list, expected keys with values"]);
    }

    #[test]
    fn broken_yaml_and_doubled_keys_are_problems() {
        assert_eq!(outer("inner: {").1.len(), 1);
        assert_eq!(outer("size: 1\nsize: 2\n").1.len(), 1);
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        let mut problems = Problems::new("test");
        let tree = tree("y: y\nn: [no, on, true]\n", &mut problems);
        assert_eq!(tree, serde_json::json!({ "y": "y", "n": ["no", "on", true] }));
    }

    #[test]
    fn variables_are_put_in_and_missing_ones_named() {
        let mut problems = Problems::new("test");
        let mut tree = tree("a: \"x${HOME_OF_KEYS}y\"\nb: [\"${NOT_THERE}\"]\nc: \"${open\"\n", &mut problems);
        expand(&mut tree, &|name| (name == "HOME_OF_KEYS").then(|| "/k".to_owned()), &mut problems);
        assert_eq!(tree["a"], "x/ky");
        assert_eq!(tree["c"], "${open");
        assert_eq!(problems.list.len(), 1);
        assert_eq!(
            (problems.list[0].path.as_str(), problems.list[0].text.as_str()),
            ("b[0]", "the variable `NOT_THERE` is not set")
        );
    }

    #[test]
    fn what_comes_later_is_named_so() {
        let mut problems = Problems::new("test");
        let mut tree = tree("a: [{ b: 1 }, { c: 1 }, { b: 2 }]\n", &mut problems);
        refuse_later(&mut tree, &["a.*.b", "x.y"], &mut problems);
        assert_eq!(tree, serde_json::json!({ "a": [{}, { "c": 1 }, {}] }));
        assert_eq!(problems.list[1].text, "`a[2].b` is not available in this version");
    }
}
