//! The configuration: the reference file, precedence, and errors that name key, value and range.

use std::{collections::HashMap, path::Path, time::Duration};

use outrigger::config::{Config, ConfigError, REFERENCE, load};
use tempfile::TempDir;

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let env: HashMap<String, String> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(Some(&path), |name| env.get(name).cloned())
}

fn error(text: &str) -> String {
    load_text(text, &[]).unwrap_err().to_string()
}

/// What is told without where it is.
fn told(text: &str) -> String {
    error(text).lines().next().unwrap().to_owned()
}

#[test]
fn the_reference_file_equals_the_defaults() {
    assert_eq!(load_text(REFERENCE, &[]).unwrap(), Config::default());
}

/// The reference file with each commented key switched on, but those of these sections, and files of secrets.
fn switched_on(but: [&str; 2]) -> String {
    let mut section = "";
    let lines = REFERENCE.lines().map(|line| {
        section = line.strip_prefix('[').map_or(section, |name| name.trim_end_matches(']'));
        let key = line.strip_prefix("# ").filter(|key| {
            let name = key.split_once(" = ").map(|(name, _)| name);
            let is_name = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            name.is_some_and(|name| is_name(name) && !["uri_file", "webhook_file"].contains(&name))
        });
        key.filter(|_| !but.contains(&section)).unwrap_or(line)
    });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_reference_file_shows_every_key() {
    // Each must be read with the ends that it belongs to; and none may be missing.
    let config = load_text(&switched_on(["outbox", "postgres"]), &[]).unwrap();
    assert!(config.local.uri.is_some() && config.atlas.uri.is_some());
    assert!(config.alerts.webhook.is_some() && config.alerts.heartbeat_url.is_some());

    let text = switched_on(["outbox", "atlas"]);
    let text = text.replace("kind = \"atlas\"", "kind = \"postgres\"");
    assert!(load_text(&text, &[]).unwrap().postgres.uri.is_some());

    let text = switched_on(["local", "postgres"]);
    let text = text.replace("kind = \"mongodb\"", "kind = \"outbox\"")
        + "[[route]]\nevent = \"*\"\ncollection = \"a.b\"\nkey = \"id\"\nop = \"replace\"\n";
    let config = load_text(&text, &[]).unwrap();
    assert!(
        config.outbox.uri.is_some() && config.outbox.columns != Config::default().outbox.columns
    );

    let shown = REFERENCE.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(shown, 60, "a key is missing in config.toml, or this count is old");
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = load_text(
        "[worker]\nbatch_size = 7\nmax_retries = 2\n[namespaces]\nexclude = [\"a.b\"]",
        &[
            ("SYNC_BATCH_SIZE", "9"),
            ("SYNC_WORKER_INTERVAL", "250"),
            ("SYNC_QUEUE_MAX_SIZE", "1234"),
            ("SYNC_PERSIST_QUEUE", "false"),
            ("SYNC_ENABLED", "false"),
            ("SYNC_EXCLUDED_COLLECTIONS", "sessions, shop.tmp"),
            ("MONGODB_LOCAL_URI", "mongodb://ann:s3cret@h/shop"),
        ],
    )
    .unwrap();

    assert_eq!((config.worker.batch_size, config.worker.max_retries), (9, 2));
    assert_eq!(config.worker.interval, Duration::from_millis(250));
    assert_eq!(config.queue.max_documents, 1234);
    assert!(!config.queue.persist && !config.sync.enabled);
    assert_eq!(config.namespaces.exclude, ["a.b", "*.sessions", "shop.tmp"]);
    let filter = config.filter().unwrap();
    assert!(filter.matches(&"shop.orders".parse().unwrap()), "the URI names the database");
    assert!(!filter.matches(&"shop.sessions".parse().unwrap()));
    assert!(!filter.matches(&"crm.people".parse().unwrap()));
}

#[test]
fn an_unknown_key_names_the_nearest() {
    assert_eq!(
        told("[worker]\nbatchsize = 5"),
        "unknown key `worker.batchsize`; did you mean `worker.batch_size`?"
    );
    assert_eq!(told("nonsense = 5"), "unknown key `nonsense`");
}

#[test]
fn a_bad_value_names_key_value_and_range() {
    assert_eq!(told("[worker]\nlanes = 0"), "`worker.lanes` = 0: out of range; accepted: 1 to 64");
    assert!(error("[queue]\nmax_bytes = \"5 parsecs\"").contains("`queue.max_bytes`"));
    assert!(error("[namespaces]\ninclude = [\"shop\"]").contains("write `shop.*`"));
    assert!(error("[breaker]\nopen_for = \"50s\"\nopen_for_max = \"2s\"").contains("open_for_max"));
    assert!(error("[alerts]\nrunbook = \"https://wiki.example\"").contains("`{alert}`"));
    for name in ["", "a.b", "Local", "a b"] {
        let text = error(&format!("[atlas]\nstate_database = \"{name}\""));
        assert!(text.contains("`atlas.state_database`"), "{text}");
    }
    let env = load_text("", &[("SYNC_BATCH_SIZE", "many")]).unwrap_err().to_string();
    assert!(env.contains("SYNC_BATCH_SIZE"), "{env}");
}

#[test]
fn no_error_and_no_debug_output_shows_a_secret() {
    for text in [
        "[local]\nuri = \"mongodb://ann:s3cret@h\"",
        "[atlas]\nuri = \"http://ann:s3cret@h\"",
        "[atlas]\nuri = \"mongodb://ann:s3cret",
        "[atlas]\nuri = 's3cret' 's3cret'",
        "[alerts]\nwebhook = \"ftp://s3cret\"",
        "[alerts]\nwebhook = 5 s3cret",
        "[atlas]\nuri = \"\"\"\nmongodb://ann:s3cret@h",
        "[local]\ntimeout = 5s\nmongodb://ann:s3cret@h/?tls=true",
        "password = s3cret\nlanes = mongodb://ann:s3cret@h",
    ] {
        assert!(!error(text).contains("s3cret"), "{}", error(text));
    }
    let env = load_text("", &[("MONGODB_ATLAS_URI", "mongo://ann:s3cret@h")]).unwrap_err();
    assert!(!format!("{env} {env:?}").contains("s3cret"));
    let config =
        load_text("", &[("MONGODB_ATLAS_URI", "mongodb://ann:s3cret@h/?tls=true")]).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn a_connection_string_may_come_from_a_file() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("atlas.uri");
    std::fs::write(&file, "mongodb://ann:s3cret@h/?tls=true\n").unwrap();

    let config =
        load_text(&format!("[atlas]\nuri_file = {:?}", file.display().to_string()), &[]).unwrap();
    let missing = load_text("[atlas]\nuri_file = \"/nowhere\"", &[]).unwrap_err();

    assert!(config.atlas_uri().unwrap().has_credentials());
    std::fs::write(&file, "postgres://ann:s3cret@h/shop\n").unwrap();
    let text = format!(
        "[target]\nkind = \"postgres\"\n[postgres]\nuri_file = {:?}",
        file.display().to_string()
    );
    let config = load_text(&text, &[]).unwrap();
    assert_eq!(config.postgres_uri().unwrap().expose(), "postgres://ann:s3cret@h/shop");
    assert!(!format!("{config:?}").contains("s3cret"));
    assert!(
        matches!(missing, ConfigError::Unreadable { path, .. } if path == Path::new("/nowhere"))
    );
}

#[test]
fn a_connection_string_beside_a_file_of_one_is_refused_and_neither_is_chosen() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("uri");
    std::fs::write(&file, "mongodb://ann:s3cret@of-file/shop\n").unwrap();
    let both =
        format!("[local]\nuri = \"mongodb://of-key/shop\"\nuri_file = {:?}\n", file.display());

    let error = error(&both);

    assert!(
        error.starts_with("`local.uri_file`: is set beside `local.uri`") && error.contains(":3:1"),
        "{error}"
    );
    // Nor is it another thing where the environment has the last word.
    let env = [("MONGODB_LOCAL_URI", "mongodb://of-env/shop")];
    assert!(load_text(&both, &env).is_err());
    let postgres = "[target]\nkind = \"postgres\"\n";
    for (before, section, key, address) in [
        ("", "atlas", "uri", "mongodb://h/"),
        ("", "alerts", "webhook", "http://h/"),
        (postgres, "postgres", "uri", "postgres://h/shop"),
    ] {
        let text = format!("{before}[{section}]\n{key} = {address:?}\n{key}_file = \"f\"\n");
        assert!(
            told(&text).starts_with(&format!("`{section}.{key}_file`: is set beside")),
            "{text}"
        );
    }
}

#[test]
fn atlas_without_tls_is_refused_unless_allowed() {
    let uri = ("MONGODB_ATLAS_URI", "mongodb://h:27017");

    assert!(load_text("", &[uri]).unwrap().atlas_uri().is_err());
    assert!(load_text("[atlas]\nallow_insecure = true", &[uri]).unwrap().atlas_uri().is_ok());
    for tls in ["mongodb+srv://h", "mongodb://h/?tls=true", "mongodb://h/?ssl=true"] {
        assert!(load_text("", &[("MONGODB_ATLAS_URI", tls)]).unwrap().atlas_uri().is_ok());
    }
    let off = ("MONGODB_ATLAS_URI", "mongodb+srv://h/?tls=false");
    assert!(load_text("", &[off]).unwrap().atlas_uri().is_err());
}
