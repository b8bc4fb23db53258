//! Rules that no compiler checks: who may know whom, how long a file may be, what documents must say.

use sluicegate::error::Code;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Which module may name which others (`src/lib.rs`, "Edges"). Whoever is not listed may name everything.
const EDGES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &["error"]),
    ("call", &["tensor", "error"]),
    ("telemetry", &["call", "current", "error"]),
    ("wire", &["call", "tensor", "error"]),
    ("trust", &[]),
    ("current", &[]),
    ("auth", &["call", "current", "error", "trust"]),
    ("limit", &["call", "error", "trust"]),
    ("layer", &["call", "current", "auth", "limit", "telemetry", "error"]),
    ("offload", &["error"]),
    ("backend", &["tensor", "error"]),
    ("builtin", &["tensor", "error"]),
    ("schedule", &["backend", "call", "tensor", "error", "telemetry"]),
    ("model", &["schedule", "backend", "builtin", "offload", "call", "tensor", "error", "telemetry"]),
    ("frontend", &["call", "wire", "offload", "tensor", "error", "telemetry", "limit::address"]),
    ("lane", &["frontend", "schedule", "call", "telemetry", "error", "shutdown"]),
    ("bench", &["app", "config", "model", "schedule", "backend", "call", "wire", "tensor", "telemetry", "error"]),
    ("stack", &["layer", "model", "call", "auth", "limit", "telemetry", "error"]),
];

/// Longest file, in lines (house rules).
const LONGEST: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn module(file: &Path) -> String {
    let relative = file.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// A file without its tests: what is for tests alone and one line long (`mod x;`, `use ...;`) is left out, and an inline
/// module of tests ends the file.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        code.push_str(before);
        let item: String = after.chars().take_while(|c| !matches!(c, ';' | '{')).collect();
        let module = item.split_whitespace().any(|word| word == "mod");
        let import = item.split_whitespace().any(|word| word == "use");
        if module && after[item.len()..].starts_with('{') {
            return code;
        }
        rest = match after.split_once(';') {
            Some((_, after)) if module || import => after,
            // Some other item for tests: what it names is for tests, but where it ends takes a parser to know.
            _ => after,
        };
    }
    code + rest
}

/// Everything after `crate::` that the non-test part of a file names, `use` groups unfolded one level.
fn named(text: &str) -> BTreeSet<String> {
    let code = without_tests(text);
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let inner = match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 1;
                let end = group
                    .char_indices()
                    .find_map(|(index, c)| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        (depth == 0).then_some(index)
                    })
                    .unwrap_or(group.len());
                top_level_parts(&group[..end])
            }
            None => vec![rest.to_owned()],
        };
        for path in inner {
            let path: String =
                path.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == ':').collect();
            names.insert(path);
        }
    }
    names
}

fn top_level_parts(group: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Whether a file belongs to tests as a whole, by its name or that of its folder.
fn is_test(file: &Path) -> bool {
    let relative = file.strip_prefix(root()).unwrap_or(file).with_extension("");
    relative
        .iter()
        .filter_map(|part| part.to_str())
        .any(|part| matches!(part, "tests" | "testing" | "fixture") || part.ends_with("_tests"))
}

#[test]
fn what_is_for_tests_alone_hides_nothing_behind_it() {
    let planted = "#[cfg(test)]\nmod testing;\n#[cfg(test)]\n#[path = \"x\"]\nmod tests;\n#[cfg(test)]\nuse crate::stack::{a, b};\n\
        use crate::{layer::Seen, error};\n#[cfg(test)]\nmod inline {\n use crate::app::Unseen;\n}\n";
    assert_eq!(named(planted).into_iter().collect::<Vec<_>>(), ["error", "layer::Seen"]);
}

#[test]
fn modules_name_only_those_they_may() {
    let edges: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut violations = Vec::new();
    for file in sources(&root().join("src")) {
        let module = module(&file);
        let Some(allowed) = edges.get(module.as_str()) else { continue };
        if is_test(&file) {
            continue;
        }
        for path in named(&fs::read_to_string(&file).unwrap()) {
            let own = path.split("::").next().unwrap_or_default() == module;
            let fits = |edge: &&str| path == **edge || path.starts_with(&format!("{edge}::"));
            if !own && !allowed.iter().any(fits) {
                violations.push(format!("{} names crate::{path}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn only_the_edge_names_onnx_runtime_and_only_it_is_unsafe() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        if !shown.starts_with("src/backend/ort/") {
            assert!(!text.contains("use ort::") && !text.contains(" ort::Session"), "{shown} names ort");
        }
        let edge = ["", "/memory", "/options"].map(|part| format!("src/backend/ort/values{part}.rs"));
        if !edge.contains(&shown) {
            let unsafe_code = text.lines().any(|line| {
                !line.trim_start().starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe fn"))
            });
            assert!(!unsafe_code && !text.contains("allow(unsafe_code)"), "{shown} is unsafe");
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let files = ["src", "tests", "benches", "proto"].map(|folder| sources(&root().join(folder))).concat();
    let mut faults = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(root()).unwrap().display();
        let lines = text.lines().count();
        if lines > LONGEST {
            faults.push(format!("{shown} has {lines} lines, at most {LONGEST}"));
        }
        if !text.starts_with("//!") {
            faults.push(format!("{shown} does not begin with what it is for"));
        }
        for banned in ["todo!(", "unimplemented!(", "#[ignore", "should_panic"] {
            let used =
                text.lines().any(|line| line.trim_start().starts_with(banned) || line.contains(&format!(" {banned}")));
            if used && !shown.to_string().ends_with("tidy.rs") {
                faults.push(format!("{shown} contains {banned}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_readme_shows_the_error_table() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for code in Code::ALL {
        let row = code.row();
        let retry = if row.retry { "yes" } else { "no" };
        let line = format!("| `{}` | {} | {} | {retry} |", row.name, row.http, row.grpc);
        assert!(readme.contains(&line), "README.md lacks the row\n{line}");
    }
}

#[test]
fn the_readme_names_every_make_target() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for line in makefile.lines() {
        let Some((target, _)) = line.split_once(':') else { continue };
        if line.contains("## ") && !target.starts_with('\t') {
            assert!(readme.contains(&format!("make {target}")), "README.md does not say what `make {target}` does");
        }
    }
}

#[test]
fn the_documentation_names_every_metric_family() {
    let page = fs::read_to_string(root().join("docs/observability.md")).unwrap();
    let families = fs::read_to_string(root().join("src/telemetry/metrics/families.rs")).unwrap();
    let names: BTreeSet<_> = families.split('"').filter(|word| word.starts_with("sluicegate_")).collect();
    assert!(names.len() > 10, "the families are named as literals in that file");
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/observability.md does not name `{name}`");
    }
    for limit in sluicegate::error::Limit::ALL {
        let name = limit.name();
        assert!(page.contains(&format!("`{name}`")), "docs/observability.md does not name the limit `{name}`");
    }
}

#[test]
fn what_is_committed_as_models_is_small() {
    fn size(path: &Path) -> u64 {
        let meta = fs::metadata(path).unwrap();
        if meta.is_file() {
            return meta.len();
        }
        fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
    }
    assert!(size(&root().join("models")) < 2 * 1024 * 1024);
}

/// What a path of modules means: the file that it leads to, through `mod x;`, an inline `mod tests` or `#[path]`.
fn file_of(modules: &[&str]) -> Option<PathBuf> {
    let (folder, modules) = match modules {
        ["it", modules @ ..] => (root().join("tests/it"), modules),
        modules => (root().join("src"), modules),
    };
    let files = |depth: usize| {
        let path = modules[..depth].iter().fold(folder.clone(), |path, module| path.join(module));
        [path.with_extension("rs"), path.join("mod.rs")]
    };
    let (depth, file) = (1..=modules.len()).rev().find_map(|depth| {
        let file = files(depth).into_iter().find(|file| file.is_file())?;
        Some((depth, file))
    })?;
    match modules[depth..] {
        [] => Some(file),
        ["tests"] => {
            let text = fs::read_to_string(&file).unwrap();
            let elsewhere = text.split_once("#[path = \"").and_then(|(_, rest)| rest.split_once("\"]\nmod tests;"));
            Some(elsewhere.map_or(file.clone(), |(name, _)| file.with_file_name(name)))
        }
        _ => None,
    }
}

/// Whether there is a test of this name, as `docs/conformance.md` writes it.
fn is_there(test: &str) -> bool {
    let (file, function) = match test.split_once(".py::") {
        // Those that need an environment of their own lie in a folder of their own.
        Some((file, function)) => {
            let lies = |folder: &str| root().join(format!("tests/clients/{folder}{file}.py"));
            (["", "apart/"].map(lies).into_iter().find(|file| file.is_file()), format!("\ndef {function}("))
        }
        None => {
            let mut modules: Vec<_> = test.split("::").collect();
            let name = modules.pop().unwrap_or_default();
            (file_of(&modules), format!(" fn {name}("))
        }
    };
    let Some(file) = file else { return false };
    let text = fs::read_to_string(file).unwrap();
    // At the beginning of a line there is no space before it.
    text.contains(&function) || text.contains(&format!("\n{}", function.trim_start()))
}

#[test]
fn a_test_is_found_by_its_name_and_another_is_not() {
    for (test, there) in [
        ("it::tidy::a_test_is_found_by_its_name_and_another_is_not", true),
        ("it::v1::grpc::grpc_tells_states_and_metadata", true),
        ("it::parity::a_key_opens_the_door", true),
        ("error::code::tests::names_are_unique_and_snake_case", true),
        ("frontend::grpc::web::tests::no_text_panics", true),
        ("wire::json::tests::elements::booleans_are_words", true),
        ("test_kserve.py::test_an_inference", true),
        ("it::tidy::a_test_is_found_by_its_name", false),
        ("it::v1::grpc_tells_states_and_metadata", false),
        ("it::nowhere::a_key_opens_the_door", false),
        ("frontend::grpc::tests::no_text_panics", false),
        ("test_kserve.py::test_an", false),
        ("test_nobody.py::test_an_inference", false),
    ] {
        assert_eq!(is_there(test), there, "{test}");
    }
}

#[test]
fn what_the_page_of_conformance_names_is_there() {
    let page = fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let (rules, exceptions) = page.split_once("\n## Exceptions\n").expect("a section of exceptions");
    let tests = |text: &str| {
        let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
        // `it::…` is how the page speaks of them.
        quoted.filter(|word| word.contains("::") && !word.contains('…')).collect::<Vec<_>>()
    };
    let mut faults = Vec::new();
    let rows =
        rules.lines().filter(|line| line.starts_with('|') && !line.starts_with("| What") && !line.starts_with("|-"));
    for row in rows {
        let held = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        if tests(held).is_empty() {
            faults.push(format!("nothing holds: {row}"));
        }
    }
    faults.extend(tests(rules).into_iter().chain(tests(exceptions)).filter(|test| !is_there(test)));
    assert!(faults.is_empty(), "{faults:#?}");
    for linking in ["README.md", "docs/migration.md"] {
        assert!(fs::read_to_string(root().join(linking)).unwrap().contains("conformance.md"), "{linking}");
    }
}
