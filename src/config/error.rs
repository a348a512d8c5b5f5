//! What is wrong with the configuration, and where in the file it stands.

use std::{
    borrow::Cow,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{keys::KEYS, secret::ReadError};
use crate::model::hint::Hint;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file named by `--config` or a `*_file` key is not there or not readable.
    #[error("cannot read `{path}`{}", named_by(*.key))]
    Unreadable {
        path: PathBuf,
        /// The key that names it; none for the configuration itself.
        key: Option<&'static str>,
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("`{path}` is not valid TOML: {message}")]
    Syntax { path: PathBuf, message: String },
    /// A file that is there and holds no text, or a secret of the wrong form.
    #[error("`{path}`{}{} cannot be used: {problem}", named_by(*.key), .key.map_or("", |_| ","))]
    NoText { path: PathBuf, key: Option<&'static str>, problem: String },
    /// A key that does not exist, in practice a typing mistake.
    #[error("unknown key `{key}`{}", did_you_mean(*.nearest))]
    UnknownKey { key: String, nearest: Option<&'static str> },
    /// A value that a key does not accept.
    #[error("`{key}` = {value}: {problem}; accepted: {accepts}")]
    Value { key: String, value: String, problem: String, accepts: &'static str },
    /// Values that do not go together.
    #[error("`{key}`: {problem}")]
    Invalid { key: &'static str, problem: String },
    /// A connection string that is needed and not there.
    #[error(
        "no connection string for {what}: `{key}` is not set and the environment variable {variable} is empty"
    )]
    Missing { what: &'static str, key: &'static str, variable: &'static str },
    /// Neither end is named, as on the first day.
    #[error(
        "no connection strings: neither `local.uri_file` nor `atlas.uri_file` is set, and the environment variables \
         MONGODB_LOCAL_URI and MONGODB_ATLAS_URI are empty"
    )]
    MissingBoth,
    /// One of these, and where in the file.
    #[error("{error}\n{place}")]
    At { error: Box<ConfigError>, place: FilePlace },
    /// More than one, in the order of the file.
    #[error("the configuration has {} mistakes:\n\n{}", .0.len(), all(.0))]
    Several(Vec<ConfigError>),
}

fn did_you_mean(nearest: Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

fn named_by(key: Option<&'static str>) -> String {
    key.map_or_else(String::new, |key| format!(", which `{key}` names"))
}

fn all(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

impl ConfigError {
    pub(super) fn of_file(path: &Path, key: Option<&'static str>, error: ReadError) -> Self {
        let path = path.to_owned();
        match error {
            ReadError::Unreadable(source) => ConfigError::Unreadable { path, key, source },
            ReadError::Malformed(problem) => ConfigError::NoText { path, key, problem },
        }
    }

    /// A value that a key cannot have, as was found out later.
    pub fn invalid(key: &'static str, problem: String) -> Self {
        ConfigError::Invalid { key, problem }
    }

    pub(super) fn at(self, place: Option<FilePlace>) -> Self {
        match place {
            Some(place) => ConfigError::At { error: Box::new(self), place },
            None => self,
        }
    }

    /// The one, or all of them; `Ok` where there is none.
    pub(super) fn of_all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(ConfigError::Several(errors)),
        }
    }
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            ConfigError::Missing { key, variable, .. } => format!(
                "export {variable}='{}', or put it into a file and name that in `{key}`",
                example_of(variable)
            ),
            ConfigError::MissingBoth => format!(
                "export both, or put each into a file and name those in the configuration:\n  \
                 export MONGODB_LOCAL_URI='{}'\n  export MONGODB_ATLAS_URI='{}'\n\
                 `outrigger init` writes a commented config.toml",
                example_of("MONGODB_LOCAL_URI"),
                example_of("MONGODB_ATLAS_URI"),
            ),
            ConfigError::Unreadable { key: None, .. } => {
                "`outrigger init` writes a commented config.toml".to_owned()
            }
            ConfigError::Unreadable { key: Some(key), source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                format!(
                    "let the user that runs this read it, and nobody else (`chown` and `chmod 600`), or correct `{key}`"
                )
            }
            ConfigError::Unreadable { key: Some(key), .. }
            | ConfigError::NoText { key: Some(key), .. } => format!(
                "write {} into it, on one line, for its owner alone to read (`chmod 600`), or correct `{key}`",
                if key.contains("uri") { "the connection string" } else { "the address" }
            ),
            ConfigError::UnknownKey { .. } | ConfigError::Syntax { .. } => {
                "compare with the reference: `outrigger init` writes it".to_owned()
            }
            ConfigError::NoText { key: None, .. } => {
                "correct the file; the book (docs/configure.md) says what it holds".to_owned()
            }
            ConfigError::Value { .. } | ConfigError::Invalid { .. } => {
                "change the value in the configuration file or the environment".to_owned()
            }
            ConfigError::At { error, .. } => return error.hint(),
            ConfigError::Several(_) => {
                "correct them all; the reference is what `outrigger init` writes".to_owned()
            }
        };
        Some(hint.into())
    }
}

/// How such a connection string looks.
fn example_of(variable: &str) -> &'static str {
    match variable {
        "MONGODB_ATLAS_URI" => "mongodb+srv://USER:PASSWORD@CLUSTER.mongodb.net/",
        "POSTGRES_URI" | "OUTBOX_URI" => "postgres://USER:PASSWORD@HOST:5432/DATABASE",
        _ => "mongodb://USER:PASSWORD@127.0.0.1:27017/?replicaSet=rs0&authSource=admin",
    }
}

/// A place in the file, as a person looks it up: line, column, and the line as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    path: PathBuf,
    /// From 1.
    pub line: usize,
    /// In signs, from 1.
    pub column: usize,
    width: usize,
    shown: String,
}

/// What is shown in the place of a secret. A fixed text: even its length, or its last signs, would help whoever guesses.
const HIDDEN: &str = "<not shown>";

impl FilePlace {
    pub(super) fn of(path: &Path, text: &str, span: Range<usize>) -> Option<Self> {
        let before = text.get(..span.start)?;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = text.get(start..)?.lines().next().unwrap_or("");
        let column = before.get(start..)?.chars().count() + 1;
        let end = span.end.min(start + line.len()).max(span.start);
        Some(Self {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column,
            width: text.get(span.start..end).map_or(1, |part| part.chars().count().max(1)),
            shown: shown(text.get(..start)?, line),
        })
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, column, width, shown } = self;
        let gutter = " ".repeat(line.to_string().len());
        let file = if path.as_os_str().is_empty() { Path::new("configuration") } else { path };
        write!(
            f,
            " {gutter}--> {}:{line}:{column}\n {gutter}|\n {line} | {shown}",
            file.display()
        )?;
        // The mistake may be in the part of the line that is hidden: then no caret is drawn under it.
        let visible = shown.strip_suffix(HIDDEN).unwrap_or(shown).chars().count();
        if column + width - 1 <= visible || visible == shown.chars().count() {
            write!(f, "\n {gutter}| {}{}", " ".repeat(column - 1), "^".repeat(*width))?;
        }
        Ok(())
    }
}

/// A line as far as it holds nothing that may be a secret: of a key that is known and takes none all of it, of another
/// its key, and of anything else nothing.
fn shown(before: &str, line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let names_secret =
        |text: &str| text.contains("://") || text.contains('@') || text.contains("\"\"\"");
    let is_open = |key: &str| {
        let last = key.rsplit('.').next().unwrap_or(key);
        let takes_secret = ["uri", "url", "webhook"].iter().any(|word| last.contains(word));
        let is_known = KEYS.iter().any(|known| known.name.ends_with(&format!(".{last}")))
            || super::mapping::KEYS.contains(&last)
            || super::outbox::KEYS.contains(&last);
        is_known && (!takes_secret || last.ends_with("_file"))
    };
    let trimmed = line.trim();
    let title = trimmed.trim_matches(['[', ']']);
    if trimmed.starts_with('[') && title.chars().all(is_word) {
        return line.to_owned();
    }
    match line.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() && key.trim().chars().all(is_word) => {
            let shows = is_open(key.trim()) && !names_secret(line);
            if shows { line.to_owned() } else { format!("{key}= {HIDDEN}") }
        }
        // No `key =` in the line: it is an item of a list that began above, and may be a secret.
        _ => {
            let list = before.lines().rev().find_map(|line| line.split_once('='));
            let shows = list.is_some_and(|(key, rest)| {
                let opens = rest.trim().starts_with('[') && !rest.contains(']');
                is_open(key.trim()) && opens && !names_secret(rest)
            });
            if shows && !names_secret(line) { line.to_owned() } else { HIDDEN.to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, at: &str) -> String {
        let start = text.find(at).unwrap();
        FilePlace::of(Path::new("c.toml"), text, start..start + at.len()).unwrap().to_string()
    }

    #[test]
    fn a_place_is_shown_with_its_line_and_a_caret() {
        assert_eq!(
            place("[worker]\nlanes = 0\n", "0"),
            "  --> c.toml:2:9\n  |\n 2 | lanes = 0\n  |         ^"
        );
        assert!(
            place("[namespaces]\ninclude = [\n  \"a.b\"\n  \"ä.d\"\n]", "\"ä.d\"")
                .ends_with("\n  |   ^^^^^")
        );
    }

    #[test]
    fn what_may_be_a_secret_is_a_fixed_text() {
        for text in [
            "uri = \"mongodb://ann:s3cret@h\"",
            "local.uri = 's3cret' 's3cret'",
            "webhook = s3cret",
            "password = s3cret",
            "mongodb://ann:s3cret@h/?tls=true",
            "level = \"mongodb://ann:s3cret@h\"",
            "timeout = \"5s\"\ns3cret",
            "uri = [\n s3cret",
        ] {
            let told = place(text, "s3cret");
            assert!(!told.contains("s3cret") && told.contains(HIDDEN), "{told}");
        }
    }
}
