//! Which identity may do what with which model.
//!
//! Knows names, not models: its answers depend on the grants alone, so they cannot tell whether a model exists.

use super::ANONYMOUS;
use crate::{
    call::{Identity, Intent, ModelRef, Scope, pattern},
    error::Error,
};
use foldhash::HashMap;
use std::sync::Arc;

/// The names of all intents, for messages.
pub const INTENTS: &str = "infer, generate, inspect, manage or metrics";

/// One entry of `grants`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// To whom.
    pub to: Vec<Grantee>,
    /// For what.
    pub intents: Vec<Intent>,
    /// Patterns of model names.
    pub models: Vec<Arc<str>>,
    /// Patterns of versions. A call that names no version needs `*`, because it may come to any.
    pub versions: Vec<Arc<str>>,
}

/// To whom something is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grantee {
    /// `identity:NAME`.
    Identity(Arc<str>),
    /// `group:NAME`: each member.
    Group(Arc<str>),
    /// `claim:NAME=VALUE`: whose token says so. Members of objects have names with dots.
    Claim(Arc<str>, Arc<str>),
    /// `anonymous`: callers without credentials, with `auth.anonymous: always`.
    Anonymous,
}

/// All grants. What is not granted is denied.
#[derive(Debug, Default)]
pub struct Grants {
    rules: Vec<Rule>,
    /// Indices of rules, by the name of an identity. Names come from the configuration: a fast hasher is enough.
    identities: HashMap<Arc<str>, Vec<usize>>,
    /// Indices of rules, by the name of a group.
    groups: HashMap<Arc<str>, Vec<usize>>,
    /// Indices of rules, by the name and then the value of a claim.
    claims: HashMap<Arc<str>, HashMap<Arc<str>, Vec<usize>>>,
}

// === impl Grantee ===

impl Grantee {
    /// Reads a grantee as the configuration writes it.
    ///
    /// # Errors
    ///
    /// What was found and what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text == ANONYMOUS => Ok(Self::Anonymous),
            Some(("identity", ANONYMOUS)) => Err(format!("`{text}` names nobody; write {ANONYMOUS}")),
            Some(("identity" | "group" | "claim", name)) if name.contains('*') => {
                Err(format!("`{text}` has a `*`, which stands for models and versions only; use a group"))
            }
            Some(("identity", name)) if !name.is_empty() => Ok(Self::Identity(name.into())),
            Some(("group", name)) if !name.is_empty() => Ok(Self::Group(name.into())),
            Some(("claim", claim)) => match claim.split_once('=') {
                // Of an object or a list the end of a path is named, and there is none that is empty.
                Some((name, value)) if !name.is_empty() => Ok(Self::Claim(name.into(), value.into())),
                _ => Err(format!("`{text}` is no claim, expected claim:NAME=VALUE")),
            },
            _ => {
                Err(format!("`{text}` is nobody, expected identity:NAME, group:NAME, claim:NAME=VALUE or {ANONYMOUS}"))
            }
        }
    }
}

// === impl Rule ===

impl Rule {
    fn names(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| pattern::fits(pattern, model))
    }

    fn covers(&self, version: Option<&str>) -> bool {
        self.versions.iter().any(|pattern| match version {
            Some(version) => pattern::fits(pattern, version),
            None => &**pattern == "*",
        })
    }
}

// === impl Grants ===

impl Grants {
    /// Grants of these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        let mut grants = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            for to in &rule.to {
                let places = match to {
                    Grantee::Identity(name) => grants.identities.entry(Arc::clone(name)),
                    Grantee::Group(name) => grants.groups.entry(Arc::clone(name)),
                    Grantee::Claim(name, value) => {
                        grants.claims.entry(Arc::clone(name)).or_default().entry(Arc::clone(value))
                    }
                    Grantee::Anonymous => grants.identities.entry(ANONYMOUS.into()),
                };
                places.or_default().push(index);
            }
        }
        grants.rules = rules;
        grants
    }

    /// May `identity` do `intent` with `model`? Without a model: with the server, which takes the intent on any model.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if it has no grant at all on the model, [`Error::Forbidden`] if it has one but not for
    /// this intent (contract 00 section 2). They are worded as the router words them for models that do not exist.
    pub fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
        let Some(narrow) = Narrow::of(identity) else { return Ok(()) };
        let Some(model) = model else {
            let granted = narrow.has(intent) && self.rules_of(identity).any(|rule| rule.intents.contains(&intent));
            return if granted { Ok(()) } else { Err(Error::Forbidden { action: on_server(intent) }) };
        };
        let version = model.version.as_deref();
        let (mut sees_model, mut sees_version) = (false, false);
        for rule in self.rules_of(identity).filter(|rule| narrow.leaves(rule, &model.name)) {
            sees_model = true;
            if rule.covers(version) {
                sees_version = true;
                if narrow.has(intent) && rule.intents.contains(&intent) {
                    return Ok(());
                }
            }
        }
        Err(match (sees_model, sees_version) {
            (false, _) => Error::ModelNotFound { model: Arc::clone(&model.name), version: None },
            (true, false) if version.is_none() => {
                Error::Forbidden { action: "use this model without naming one of its versions" }
            }
            (true, false) => Error::ModelNotFound { model: Arc::clone(&model.name), version: model.version.clone() },
            (true, true) => Error::Forbidden { action: on_model(intent) },
        })
    }

    /// May `identity` know that the model `name` exists?
    pub fn may_see(&self, identity: &Identity, name: &str) -> bool {
        Narrow::of(identity).is_none_or(|narrow| self.rules_of(identity).any(|rule| narrow.leaves(rule, name)))
    }

    /// Has `identity` any grant at all?
    pub fn any(&self, identity: &Identity) -> bool {
        Narrow::of(identity)
            .is_none_or(|narrow| self.rules_of(identity).any(|rule| rule.intents.iter().any(|i| narrow.has(*i))))
    }

    fn rules_of<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = &'a Rule> {
        let own = self.identities.get(identity.id());
        let shared = identity.groups().iter().filter_map(|group| self.groups.get(group));
        // Most grants name no claim, and then no claim is looked up.
        let claims = if self.claims.is_empty() { &[] } else { identity.claims() };
        let said = claims.iter().filter_map(|(name, value)| self.claims.get(name)?.get(value));
        own.into_iter().chain(shared).chain(said).flatten().map(|index| &self.rules[*index])
    }
}

const fn on_model(intent: Intent) -> &'static str {
    match intent {
        Intent::Infer => "infer with this model",
        Intent::Generate => "generate with this model",
        Intent::Inspect => "inspect this model",
        Intent::Manage => "manage this model",
        Intent::Metrics => "read metrics of this model",
    }
}

const fn on_server(intent: Intent) -> &'static str {
    match intent {
        Intent::Infer => "infer",
        Intent::Generate => "generate",
        Intent::Inspect => "inspect the server",
        Intent::Manage => "manage the server",
        Intent::Metrics => "read metrics",
    }
}

/// What a proof leaves of the grants.
struct Narrow<'a> {
    intents: Option<&'a [Intent]>,
    models: Option<&'a [Arc<str>]>,
}

impl<'a> Narrow<'a> {
    /// `None` if no grant is needed at all.
    fn of(identity: &'a Identity) -> Option<Self> {
        match identity.scope() {
            Scope::Everything => None,
            Scope::Granted => Some(Self { intents: None, models: None }),
            Scope::Narrowed { intents, models } => {
                Some(Self { intents: intents.as_deref(), models: models.as_deref() })
            }
        }
    }

    fn has(&self, intent: Intent) -> bool {
        self.intents.is_none_or(|intents| intents.contains(&intent))
    }

    /// Whether `rule` still grants anything on `model`.
    fn leaves(&self, rule: &Rule, model: &str) -> bool {
        rule.names(model)
            && rule.intents.iter().any(|intent| self.has(*intent))
            && self.models.is_none_or(|patterns| patterns.iter().any(|pattern| pattern::fits(pattern, model)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(to: &[&str], intents: &[Intent], models: &[&str], versions: &[&str]) -> Rule {
        let names = |list: &[&str]| list.iter().map(|name| Arc::from(*name)).collect();
        Rule {
            to: to.iter().map(|to| Grantee::parse(to).unwrap()).collect(),
            intents: intents.to_vec(),
            models: names(models),
            versions: names(versions),
        }
    }

    fn identity(id: &str, groups: &[&str], scope: Scope) -> Identity {
        Identity::proven(id, groups.iter().map(|group| Arc::from(*group)).collect(), scope)
    }

    fn granted(id: &str) -> Identity {
        identity(id, &[], Scope::Granted)
    }

    fn model(name: &str, version: Option<&str>) -> ModelRef {
        ModelRef { name: name.into(), version: version.map(Arc::from) }
    }

    fn infer(grants: &Grants, identity: &Identity, name: &str) -> Result<(), Error> {
        grants.check(identity, Intent::Infer, Some(&model(name, None)))
    }

    fn web_may_infer_text() -> Grants {
        Grants::new(vec![rule(&["identity:web"], &[Intent::Infer], &["text_*"], &["*"])])
    }

    #[test]
    fn what_is_granted_is_allowed_and_nothing_else() {
        let grants = web_may_infer_text();
        assert!(infer(&grants, &granted("web"), "text_length").is_ok());
        assert!(matches!(infer(&grants, &granted("web"), "digits"), Err(Error::ModelNotFound { .. })));
        assert!(matches!(infer(&grants, &granted("other"), "text_length"), Err(Error::ModelNotFound { .. })));
        let inspect = grants.check(&granted("web"), Intent::Inspect, Some(&model("text_length", None)));
        assert!(matches!(inspect, Err(Error::Forbidden { .. })));
    }

    #[test]
    fn a_refusal_reads_as_if_the_model_did_not_exist() {
        let error = infer(&web_may_infer_text(), &granted("web"), "digits").unwrap_err();
        assert_eq!(error.to_string(), "model `digits` is unknown");
    }

    #[test]
    fn groups_and_anonymous_have_grants() {
        let grants = Grants::new(vec![rule(&["group:mobile", "anonymous"], &[Intent::Infer], &["*"], &["*"])]);
        assert!(infer(&grants, &identity("a", &["desktop", "mobile"], Scope::Granted), "m").is_ok());
        assert!(infer(&grants, &granted(ANONYMOUS), "m").is_ok());
        assert!(infer(&grants, &granted("mobile"), "m").is_err());
    }

    #[test]
    fn everything_needs_no_grant() {
        let (grants, all) = (Grants::default(), identity(ANONYMOUS, &[], Scope::Everything));
        assert!(infer(&grants, &all, "m").is_ok());
        assert!(grants.check(&all, Intent::Manage, None).is_ok());
        assert!(grants.any(&all) && grants.may_see(&all, "m"));
    }

    #[test]
    fn a_key_narrows_its_grants_and_never_widens_them() {
        let grants =
            Grants::new(vec![rule(&["identity:web"], &[Intent::Infer, Intent::Inspect], &["digits", "x"], &["*"])]);
        let narrowed = |intents: Option<Vec<Intent>>, models: Option<&str>| {
            identity("web", &[], Scope::Narrowed { intents, models: models.map(|model| vec![Arc::from(model)]) })
        };
        let only_infer = narrowed(Some(vec![Intent::Infer]), None);
        assert!(infer(&grants, &only_infer, "digits").is_ok());
        let inspect = grants.check(&only_infer, Intent::Inspect, Some(&model("digits", None)));
        assert!(matches!(inspect, Err(Error::Forbidden { .. })));
        let only_digits = narrowed(None, Some("dig*"));
        assert!(infer(&grants, &only_digits, "digits").is_ok());
        assert!(matches!(infer(&grants, &only_digits, "x"), Err(Error::ModelNotFound { .. })));
        assert!(!grants.may_see(&only_digits, "x"));
        let useless = narrowed(Some(vec![Intent::Manage]), None);
        assert!(matches!(infer(&grants, &useless, "digits"), Err(Error::ModelNotFound { .. })));
        assert!(!grants.any(&useless));
    }

    #[test]
    fn versions_are_private_too() {
        let grants = Grants::new(vec![rule(&["identity:web"], &[Intent::Infer], &["m"], &["1", "2*"])]);
        let check = |version| grants.check(&granted("web"), Intent::Infer, Some(&model("m", version)));
        assert!(check(Some("1")).is_ok() && check(Some("20")).is_ok());
        assert!(matches!(check(Some("3")), Err(Error::ModelNotFound { version: Some(_), .. })));
        assert!(matches!(check(None), Err(Error::Forbidden { .. })));
        assert!(grants.may_see(&granted("web"), "m"));
    }

    #[test]
    fn questions_about_the_server_need_the_intent_on_any_model() {
        let grants = web_may_infer_text();
        assert!(grants.check(&granted("web"), Intent::Infer, None).is_ok());
        assert!(matches!(grants.check(&granted("web"), Intent::Inspect, None), Err(Error::Forbidden { .. })));
        assert!(grants.any(&granted("web")) && !grants.any(&granted("other")));
    }

    #[test]
    fn grantees_are_spelled_out() {
        assert_eq!(Grantee::parse("group:a:b"), Ok(Grantee::Group("a:b".into())));
        assert_eq!(Grantee::parse("claim:a.b=c=d"), Ok(Grantee::Claim("a.b".into(), "c=d".into())));
        for wrong in [
            "web",
            "identity:",
            "group:",
            "identity:*",
            "identity:anonymous",
            "user:web",
            "",
            "claim:a",
            "claim:=a",
            "claim:a=*",
        ] {
            assert!(Grantee::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_claim_has_grants_and_its_name_alone_has_none() {
        let grants = Grants::new(vec![rule(&["claim:tenant=acme"], &[Intent::Infer], &["m"], &["*"])]);
        let with = |claims: &[(&str, &str)]| {
            let claims = claims.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect();
            infer(&grants, &granted("a").with_claims(claims), "m").is_ok()
        };
        assert!(with(&[("tenant", "other"), ("tenant", "acme")]));
        assert!(!with(&[("tenant", "other")]) && !with(&[("other", "acme")]) && !with(&[]));
        assert!(infer(&grants, &identity("acme", &["acme", "tenant=acme"], Scope::Granted), "m").is_err());
    }
}
