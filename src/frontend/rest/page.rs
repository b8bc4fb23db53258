//! What people and tools read about this surface: the OpenAPI document and the page that renders it.
//!
//! The document is made of the route table, which says what there is, and of `page/openapi.json`, which says what it means;
//! neither may name what the other does not. Both are fixed bytes: no model is named in them, and no slot is taken.

use super::{
    render,
    route::{Operation, Page, Route, TABLE, VERSION},
};
use crate::{call::CallId, error::Code, frontend::http::Response};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const MEANING: &str = include_str!("page/openapi.json");
const DOCS: &str = include_str!("page/docs.html");

/// Statuses that HTTP itself has for every request (contract 10 section 5).
const OF_HTTP: [&str; 4] = ["400", "414", "431", "503"];
/// Statuses of whatever is a call.
const OF_CALLS: [&str; 7] = ["401", "403", "404", "429", "500", "501", "504"];
/// Statuses of what has a body.
const OF_BODIES: [&str; 3] = ["408", "413", "415"];

static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(DOCS));

impl Page {
    /// The page as a response.
    pub(super) fn answer(self, id: &CallId) -> Response {
        let (kind, body) = match self {
            Self::OpenApi => ("application/json", OPENAPI.clone()),
            Self::Docs => ("text/html; charset=utf-8", Bytes::from_static(DOCS.as_bytes())),
        };
        let mut response = render::json(StatusCode::OK, body, id);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self == Self::Docs {
            headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
            headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
        }
        response
    }
}

/// What the page may do: run the one script and wear the one style that are in it, and ask this server.
fn policy(page: &str) -> HeaderValue {
    let hash = |open: &str, close: &str| {
        let inside =
            page.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(inside, _)| inside);
        BASE64_STANDARD.encode(Sha256::digest(inside))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>")
    );
    HeaderValue::try_from(policy).expect("hashes are base64")
}

/// The OpenAPI 3.1 document.
fn document() -> Value {
    let mut document: Value = serde_json::from_str(MEANING).expect("`openapi.json` is JSON");
    let meaning = document["operations"].take();
    let mut paths = Map::new();
    for (order, row) in TABLE.iter().enumerate() {
        for form in Form::of(row.path).iter().copied() {
            let mut methods = Map::new();
            for (method, operation) in [("get", row.get), ("post", row.post)] {
                let Some(operation) = operation else { continue };
                let mut described = described(&operation, form, row.path, &meaning[operation.id]);
                // As people read it: members of a JSON object have no order. Versions come after what they are of.
                described["x-order"] = (order + TABLE.len() * usize::from(form != Form::Plain)).into();
                methods.insert(method.into(), described);
            }
            paths.insert(form.template(row.path), methods.into());
        }
    }
    let members = document.as_object_mut().expect("`openapi.json` is an object");
    members.remove("operations");
    members.insert("paths".into(), paths.into());
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["components"]["schemas"]["Error"]["properties"]["code"]["enum"] =
        Code::ALL.map(Code::name).to_vec().into();
    document
}

/// One of the paths that a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Version,
    Label,
}

impl Form {
    fn of(path: &[&str]) -> &'static [Self] {
        match path {
            path if !path.contains(&VERSION) => &[Self::Plain],
            ["v1", ..] => &[Self::Plain, Self::Version, Self::Label],
            _ => &[Self::Plain, Self::Version],
        }
    }

    /// The path in the spelling of OpenAPI.
    fn template(self, path: &[&str]) -> String {
        let mut template = String::new();
        for part in path {
            match (*part, self) {
                (VERSION, Self::Plain) => {}
                (VERSION, Self::Version) => template.push_str("/versions/{version}"),
                (VERSION, Self::Label) => template.push_str("/labels/{label}"),
                (part, _) if part.starts_with(':') => template.push_str(part),
                (part, _) => template.extend(["/", part]),
            }
        }
        template
    }
}

/// An operation as OpenAPI has it: what it means, who it is, and what else may be answered.
fn described(operation: &Operation, form: Form, path: &[&str], meaning: &Value) -> Value {
    let mut described = meaning.clone();
    let (suffix, of) = match form {
        Form::Plain => ("", ""),
        Form::Version => ("OfVersion", " (of a version)"),
        Form::Label => ("OfLabel", " (of the version that a label names)"),
    };
    described["operationId"] = format!("{}{suffix}", operation.id).into();
    described["summary"] = format!("{}{of}", meaning["summary"].as_str().unwrap_or_default()).into();
    let template = form.template(path);
    let named = ["model", "version", "label", "region"].into_iter();
    let named = named.filter(|name| template.contains(&format!("{{{name}}}")));
    let parameters: Vec<Value> =
        named.map(|name| json!({ "$ref": format!("#/components/parameters/{name}") })).collect();
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    let is_call = operation.is_call();
    if !is_call {
        described["security"] = json!([]);
    }
    let statuses = OF_HTTP
        .iter()
        .chain(OF_CALLS.iter().filter(|_| is_call))
        .chain(OF_BODIES.iter().filter(|_| meaning.get("requestBody").is_some()));
    for status in statuses {
        described["responses"][status] = json!({ "$ref": format!("#/components/responses/{status}") });
    }
    described
}

impl Operation {
    /// Whether it goes through the stack (invariant 3 of the crate names what does not).
    pub(super) fn is_call(&self) -> bool {
        !matches!(self.of_nothing(), Route::Probe(_) | Route::Page(_) | Route::WebSocketOnly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::{
        rest::route::find,
        testing::{Plan, echo, status},
    };
    use http::Method;
    use std::{collections::BTreeSet, sync::atomic::Ordering};

    fn operations() -> Vec<(Method, String, Value)> {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let method = |name: &str| if name == "get" { Method::GET } else { Method::POST };
        paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().iter();
                methods.map(|(name, described)| (method(name), path.clone(), described.clone()))
            })
            .collect()
    }

    fn filled(path: &str) -> String {
        path.replace("{model}", "m").replace("{version}", "1").replace("{label}", "l").replace("{region}", "r")
    }

    #[test]
    fn what_is_there_is_described_and_what_is_described_is_there() {
        let meaning: Value = serde_json::from_str(MEANING).unwrap();
        let described: BTreeSet<_> = meaning["operations"].as_object().unwrap().keys().cloned().collect();
        let there: BTreeSet<_> = TABLE
            .iter()
            .flat_map(|row| [row.get, row.post])
            .flatten()
            .map(|operation| operation.id.to_owned())
            .collect();
        assert_eq!(described, there);
        let ids: BTreeSet<_> =
            operations().iter().map(|(_, _, described)| described["operationId"].to_string()).collect();
        assert_eq!(ids.len(), operations().len(), "each operation has an id of its own");
        let tags = meaning["tags"].as_array().unwrap();
        for (method, path, described) in operations() {
            assert!(find(&method, &filled(&path)).is_ok(), "{method} {path}");
            assert!(!described["summary"].as_str().unwrap().is_empty(), "{method} {path}");
            assert!(tags.iter().any(|tag| tag["name"] == described["tags"][0]), "{method} {path}");
        }
    }

    #[test]
    fn every_reference_points_at_something() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(target) = members.get("$ref").and_then(Value::as_str) {
                        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                    }
                    members.values().for_each(|value| visit(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| visit(value, document)),
                _ => {}
            }
        }
        let document = document();
        visit(&document, &document);
        // And nothing is defined that nobody uses.
        let text = document.to_string();
        for kind in ["schemas", "responses", "parameters"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                assert!(text.contains(&format!("\"#/components/{kind}/{name}\"")), "{kind}/{name} is not used");
            }
        }
    }

    #[tokio::test]
    async fn every_route_is_a_call_but_for_those_named_here() {
        let outside = ["alive", "serverLive", "serverReady", "openapi", "docs"];
        let mut settings = crate::frontend::Settings::default();
        settings.rest.predict = Some(crate::frontend::settings::Predict {
            model: crate::call::ModelRef { name: "m".into(), version: None },
            names: crate::wire::v1::Names { inputs: Vec::new(), outputs: Vec::new() },
        });
        settings.rest.metrics = true;
        let server = Plan { settings, ..Plan::default() }.start(echo);
        for (method, path, described) in operations() {
            let before = server.calls.load(Ordering::Relaxed);
            server.ask(method.as_str(), &filled(&path)).await;
            let calls = server.calls.load(Ordering::Relaxed) - before;
            let id = described["operationId"].as_str().unwrap();
            assert_eq!(calls == 0, outside.contains(&id), "{id} made {calls} calls");
            assert_eq!(described["security"] == json!([]), outside.contains(&id), "{id}");
        }
    }

    #[tokio::test]
    async fn both_are_served_to_whoever_asks() {
        let server = Plan::default().start(crate::frontend::testing::nobody);
        let answer = server.ask("GET", "/openapi.json").await;
        assert_eq!(status(&answer), 200);
        let document: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(
            (&document["openapi"], &document["info"]["version"]),
            (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION")))
        );
        let answer = server.ask("GET", "/docs").await;
        assert_eq!(status(&answer), 200);
        assert!(answer.contains("content-type: text/html; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'; script-src 'sha256-"), "{answer}");
        let head = server.ask("HEAD", "/docs").await;
        assert_eq!((status(&head), head.split_once("\r\n\r\n").unwrap().1), (200, ""));
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for foreign in ["http://", "https://", "src=", "@import", "url(", "//cdn"] {
            assert!(!DOCS.contains(foreign), "{foreign}");
        }
        assert_eq!((DOCS.matches("<script>").count(), DOCS.matches("<style>").count()), (1, 1));
        assert!(!DOCS.contains("style=\"") && !DOCS.contains(" onclick="), "what the policy would forbid");
    }
}
