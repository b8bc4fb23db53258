//! `sluicegate keys`: API keys are made, listed, revoked and hashed.
//!
//! A server that runs reads the file again within a second; nobody has to be told.

use super::failed;
use crate::auth::{
    api_key::{self, Terms},
    key_list::KeyList,
    timestamp,
};
use clap::Subcommand;
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Make a key: prints it once, and the entry for keys.yaml, or puts that into --file
    New {
        /// Identity that the key proves
        #[arg(long, value_parser = name)]
        identity: String,
        /// Groups of that identity; may be repeated
        #[arg(long = "group", value_name = "GROUP", value_parser = name)]
        groups: Vec<String>,
        /// Intents that the key is for, of those granted; may be repeated; by default all
        #[arg(long = "intent", value_name = "INTENT")]
        intents: Vec<String>,
        /// Patterns of models that the key is for, of those granted; may be repeated; by default all
        #[arg(long = "model", value_name = "PATTERN")]
        models: Vec<String>,
        /// When it ends: 2027-01-31T00:00:00Z, or in so many days or hours: 90d, 12h
        #[arg(long, value_name = "TIME", value_parser = expiry)]
        expires: Option<SystemTime>,
        /// The file of keys, which is made if it is not there
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List keys, without their hashes
    List {
        /// The file of keys
        #[arg(long, value_name = "FILE", default_value = "keys.yaml")]
        file: PathBuf,
    },
    /// Revoke a key from now on
    Revoke {
        /// Its id: `list` tells it
        id: String,
        /// The file of keys
        #[arg(long, value_name = "FILE", default_value = "keys.yaml")]
        file: PathBuf,
    },
    /// Read a key from standard input and print its hash for keys.yaml
    Hash,
}

impl Keys {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::New { identity, groups, intents, models, expires, file } => {
                new(&identity, &Terms { groups, intents, models, expires }, file.as_deref())
            }
            Self::List { file } => list(&file),
            Self::Revoke { id, file } => {
                match KeyList::open(&file).and_then(|list| list.revoke(&id, SystemTime::now())) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => failed(&error),
                }
            }
            Self::Hash => hash(),
        }
    }
}

fn new(identity: &str, terms: &Terms, file: Option<&Path>) -> ExitCode {
    let key = match api_key::generate() {
        Ok(key) => key,
        Err(error) => return failed(&error),
    };
    let entry = key.entry(identity, terms, SystemTime::now());
    // Whoever hears the key may be gone: then it is lost, and that is said.
    let show =
        |text: &str| writeln!(io::stdout(), "{text}").map_err(|error| format!("the key cannot be shown: {error}"));
    let shown = match file {
        None => {
            if let Err(error) = KeyList::check(&entry) {
                return failed(&error);
            }
            let below = "This is the only time it is shown. Put this below `keys:` in keys.yaml:";
            show(&format!("{}\n\n{below}\n\n{entry}", key.key))
        }
        Some(path) => {
            if let Err(error) = KeyList::open(path).and_then(|list| list.append(&entry)) {
                return failed(&error);
            }
            // Alone on standard output, so that a script can keep it.
            let shown = show(&key.key);
            eprintln!("This is the only time it is shown. Its id in {} is {}.", path.display(), key.id);
            shown
        }
    };
    shown.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn list(path: &Path) -> ExitCode {
    if !path.exists() {
        return failed(&format!("{}: no such file", path.display()));
    }
    let rows = match KeyList::open(path) {
        Ok(list) => list.rows(SystemTime::now()),
        Err(error) => return failed(&error),
    };
    let head = ["ID", "IDENTITY", "GROUPS", "ONLY", "CREATED", "EXPIRES", "STATE"].map(str::to_owned);
    let cells = rows.into_iter().map(|row| {
        [row.id, row.identity, row.groups, row.scope, row.created, row.expires, row.state.to_owned()]
            .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell })
    });
    let table: Vec<_> = std::iter::once(head).chain(cells).collect();
    let widths: [usize; 7] =
        std::array::from_fn(|at| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &table {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    super::print(&text);
    ExitCode::SUCCESS
}

fn hash() -> ExitCode {
    let mut key = String::new();
    if let Err(error) = io::stdin().read_line(&mut key) {
        return failed(&error);
    }
    match key.trim() {
        "" => failed(&"no key on standard input"),
        key => {
            println!("{}", api_key::hash(key));
            ExitCode::SUCCESS
        }
    }
}

/// The name of an identity or group: something that a grant can name and a line of a log can hold.
fn name(text: &str) -> Result<String, String> {
    let is_sane = !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control);
    is_sane.then(|| text.to_owned()).ok_or_else(|| {
        "expected a name without spaces around it, and without line ends and other control characters".to_owned()
    })
}

/// A time, or how long from now.
fn expiry(text: &str) -> Result<SystemTime, String> {
    if let Some(time) = timestamp::parse(text) {
        let is_ahead = time > SystemTime::now();
        return is_ahead.then_some(time).ok_or_else(|| "this time is over: the key could never be used".to_owned());
    }
    let hours = match text.strip_suffix('d') {
        Some(days) => days.parse::<u64>().ok().and_then(|days| days.checked_mul(24)),
        None => text.strip_suffix('h').and_then(|hours| hours.parse().ok()),
    };
    let span = hours.filter(|hours| *hours > 0).and_then(|hours| hours.checked_mul(3600)).map(Duration::from_secs);
    // Years of more than four digits cannot be written down.
    let last = timestamp::parse("9999-12-31T23:59:59Z");
    let time = span.and_then(|span| SystemTime::now().checked_add(span)).filter(|time| Some(*time) <= last);
    time.ok_or_else(|| "expected a time such as 2027-01-31T00:00:00Z, 90d or 12h".to_owned())
}
