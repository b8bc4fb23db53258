//! What is wrong with a configuration: all of it, each with its path.

use std::fmt;

/// Problems that are shown in one line; a file may have thousands.
const IN_ONE_LINE: usize = 8;

/// Values of fewer bytes are not hidden.
const SHORT: usize = 4;

/// Everything that is wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file, or what stands for it.
    pub source: String,
    /// In the order they were found.
    pub list: Vec<Problem>,
    /// What stood for variables in the file, with the variables' names: problems are printed, and logged.
    hidden: Hidden,
    /// Where a variable is not set: what else is wrong there comes of that.
    unset: Vec<String>,
    /// All that were found, those included that only come of others.
    found: usize,
}

/// Values that are nobody's to print.
#[derive(Clone, Default, PartialEq, Eq)]
struct Hidden(Vec<(String, String)>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `limits.rate[0].by`; empty for the file as a whole.
    pub path: String,
    /// What was found and what was expected.
    pub text: String,
}

impl Problems {
    /// No problem of `source` yet.
    pub(super) fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), list: Vec::new(), hidden: Hidden::default(), unset: Vec::new(), found: 0 }
    }

    /// One more.
    pub(super) fn push(&mut self, path: impl Into<String>, text: impl Into<String>) {
        let path = path.into();
        self.found += 1;
        if self.unset.contains(&path) {
            return;
        }
        let text = self.hidden.0.iter().fold(text.into(), |text: String, (value, name)| text.replace(value, name));
        self.list.push(Problem { path, text });
    }

    /// Something is missing, unless it only seems so: what is of no use was left out of what was read, and is told of.
    pub(super) fn missing(&mut self, path: impl Into<String>, text: impl Into<String>) {
        let path = path.into();
        if self.knows(&path) {
            self.found += 1;
        } else {
            self.push(path, text);
        }
    }

    /// Whether something is wrong at `path` or below it.
    pub(super) fn knows(&self, path: &str) -> bool {
        let is_within =
            |other: &str| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        self.list.iter().any(|problem| is_within(&problem.path))
    }

    /// The text at `path` asks for a variable that is not set, so that nobody knows what stands there.
    pub(super) fn unset(&mut self, path: String, name: &str) {
        self.found += 1;
        self.list.push(Problem { path: path.clone(), text: format!("the variable `{name}` is not set") });
        self.unset.push(path);
    }

    /// How many were found so far, for whoever goes on only where nothing was.
    pub(super) const fn found(&self) -> usize {
        self.found
    }

    /// From now on the value of the variable `name` is shown as it was written. Short ones are not: they would be found
    /// within other words, and are no secrets.
    pub(super) fn hide(&mut self, name: &str, value: &str) {
        if value.len() >= SHORT {
            self.hidden.0.push((value.to_owned(), format!("${{{name}}}")));
        }
    }

    /// Those of a file that belongs to this source, with the file's name before their paths.
    pub(super) fn absorb(&mut self, file: &str, others: Self) {
        self.list.extend(others.list.into_iter().map(|Problem { path, text }| {
            let path = if path.is_empty() { file.to_owned() } else { format!("{file} {path}") };
            Problem { path, text }
        }));
    }

    /// All of them in one line and without their source, for places where that is known.
    pub fn in_one_line(&self) -> String {
        let line = |Problem { path, text }: &Problem| {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if path.is_empty() { text } else { format!("{path}: {text}") }
        };
        let mut lines: Vec<_> = self.list.iter().take(IN_ONE_LINE).map(line).collect();
        if let Some(more @ 1..) = self.list.len().checked_sub(IN_ONE_LINE) {
            lines.push(format!("and {more} more"));
        }
        lines.join("; ")
    }

    /// `value`, if nothing is wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.list.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.list.len();
        write!(f, "{}: {n} problem{}", self.source, if n == 1 { "" } else { "s" })?;
        for Problem { path, text } in &self.list {
            if path.is_empty() { write!(f, "\n  {text}")? } else { write!(f, "\n  {path}: {text}")? }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
